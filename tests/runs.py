"""Contracts and manifests for tests: the shortest ones."""

from typing import Any

from lorikeet_api.contract import (
    Manifest,
    Metrics,
    RunContract,
    Servable,
    SourceDigest,
    StorageAccess,
    Template,
    run_id,
)
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Dataset, Method, ModelSource, Training, WeightedDataSource


def contract(output_uri: str, access: StorageAccess, **changes: Any) -> RunContract:
    """Return the contract of a small LoRA run; `seed` and any field of RunContract can be changed."""
    model = ModelSource(uri="s3://models/tiny")
    dataset = Dataset(train=[WeightedDataSource(uri="s3://datasets/sql/train.jsonl")])
    method = Method.model_validate({"lora": {}})
    objective = Objective.model_validate({"sft": {}})
    training = Training(seed=changes.pop("seed", 1), max_steps=2)
    fields: dict[str, Any] = {
        "namespace": "team-a",
        "name": "sql-v1",
        "run_id": run_id(model, dataset, method, objective, training),
        "model": model,
        "dataset": dataset,
        "method": method,
        "objective": objective,
        "training": training,
        "output_uri": output_uri,
        "storage": access,
        "gpus": 0,
        "date": "2026-11-23",
    }
    return RunContract(**{**fields, **changes})


def draft(of: RunContract) -> Manifest:
    """Return the manifest of a run that has published nothing yet."""
    return Manifest(
        kind="adapter",
        run_id=of.run_id,
        base_model=SourceDigest(uri=of.model.uri, files=[]),
        data=[],
        contract=of,
        files=[],
        template=Template(source="base"),
        rank=16,
        servable=Servable(lora=True),
        metrics=Metrics(train_loss=1.5),
        libraries={"torch": "2.13.0"},
    )
