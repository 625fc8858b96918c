"""The models' own refusals, the YAML loader, and the trainer's record."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from lorikeet_api.contract import (
    TERMINATION_LIMIT,
    Artifacts,
    Metrics,
    RunContract,
    RunRecord,
    StorageAccess,
    Use,
    data_sources,
    data_uses,
    read_as,
    run_id,
)
from lorikeet_api.crdgen import RESOURCES
from lorikeet_api.defaults import DEFAULTS
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.modeldeployment import OWNED_FLAGS, ModelDeployment
from lorikeet_api.objectives import Objective, ObjectiveName
from lorikeet_api.signs import SIGN_NAMES, Sign, Signs
from lorikeet_api.training import Dataset, DataSource, MethodName, Training
from lorikeet_api.yaml import load_all
from tests import runs
from tests.resources import deployment_body, job_body

ROOT = Path(__file__).resolve().parents[3]
LEAST: dict[str, dict[str, Any]] = {"rlhf": {"rewards": [{"match": {"column": "answer"}}]}}
"""What objectives cannot do without."""
RLHF: dict[str, Any] = {"objective": {"rlhf": LEAST["rlhf"]}}
PROMPTS: dict[str, Any] = {"train": [{"uri": "s3://datasets/prompts.jsonl"}]}


def rewarded(*rewards: dict[str, Any]) -> dict[str, Any]:
    return {"objective": {"rlhf": {"rewards": list(rewards)}}}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_request_that_the_models_take(path: Path) -> None:
    kinds = {resource.__name__: resource for resource in RESOURCES}
    for document in load_all(path):
        kinds[document["kind"]].parse(document)


def test_the_example_has_ten_lines() -> None:
    assert len((ROOT / "examples" / "finetune.yaml").read_text().splitlines()) == 10
    assert (ROOT / "examples" / "finetune.yaml").read_text() in (ROOT / "README.md").read_text()


def test_numbers_are_read_as_kubectl_reads_them() -> None:
    assert load_all("a: 2e-4\nb: 1.0e-3\nc: on\nd: 010")[0] == {"a": 2e-4, "b": 1e-3, "c": "on", "d": 10}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"method": {"lora": {}, "full": {}}}, "exactly one method"),
        ({"modle": {}}, "Extra inputs"),
        ({"model": {}}, "exactly one of uri and from"),
        ({"model": {"uri": "s3://models/x", "from": {"fineTuneJobRef": {"name": "a"}}}}, "exactly one of uri and from"),
        ({"model": {"from": {"fineTuneJobRef": {"name": "a"}}, "revision": "v1"}}, "only hf:// sources have revisions"),
        (rewarded({"model": {"fineTuneJobRef": {"name": "sql-v1"}}}), "names itself as one that it waits for"),
        (rewarded(), "give at least one reward: model, regex, jsonSchema or match"),
        ({"objective": {"rlhf": {}}}, "give at least one reward: model, regex, jsonSchema or match"),
        (rewarded({"weight": 2.0}), "exactly one reward: model, regex, jsonSchema, match"),
        (rewarded({"regex": {"pattern": "a"}, "match": {"column": "b"}}), "exactly one reward"),
        (rewarded({"model": {}}), "exactly one of uri and fineTuneJobRef"),
        (rewarded({"model": {"fineTuneJobRef": {"name": "a"}, "sha256": "0" * 64}}), "sha256 pins a uri"),
        (rewarded({"jsonSchema": "true"}), "should match pattern"),
        ({**RLHF, "training": {"batchSize": 12}}, "make it a multiple of objective.rlhf.numGenerations"),
        ({**RLHF, "dataset": {**PROMPTS, "overlong": "truncate"}}, "a prompt that is cut at its end"),
        ({**RLHF, "dataset": {**PROMPTS, "trainOn": "completion"}}, "trainOn is for objective sft"),
        ({"objective": {"reward": {}}, "dataset": {**PROMPTS, "general": PROMPTS["train"][0]}}, "writes nothing"),
        ({**RLHF, "method": {"lora": {"init": "olora", "dropout": 0}}}, "init pissa and olora are for objective sft"),
        ({"model": {"from": {"fineTuneJobRef": {"name": "sql-v1"}}}}, "names itself as one that it waits for"),
        ({"model": {"uri": "s3://models/x", "secretRef": {"name": "t"}}}, "secretRef opens hf:// sources"),
        ({"training": {"learning_rate": 1e-4}}, "Extra inputs"),
        ({"training": {"evalSteps": 5}}, "evalSteps needs dataset.eval or dataset.evalFraction"),
        ({"training": {"earlyStopping": {}}}, "earlyStopping needs dataset.eval"),
        ({"training": {"publish": "best"}}, "publish best needs dataset.eval"),
        ({"training": {"checkpoints": {"afterSuccess": "keepBest"}}}, "afterSuccess keepBest needs dataset.eval"),
        ({"training": {"signs": {"failOn": ["Repetition"]}}}, "signs.failOn Repetition needs dataset.eval"),
        (
            {**RLHF, "dataset": {**PROMPTS, "evalFraction": 0.1}, "training": {"signs": {"failOn": ["Overfitting"]}}},
            "objective rlhf does not show that sign",
        ),
        (
            {
                "objective": {"sft": {"neftuneAlpha": 5}},
                "dataset": {"train": [{"uri": "s3://data/a"}], "packing": True},
            },
            "which dataset.packing hides",
        ),
        ({"training": {"precision": "fp16"}, "compute": {"gpus": 0}}, "need a GPU"),
        ({"training": {"attention": "flash"}, "compute": {"gpus": 0}}, "need a GPU"),
        ({"training": {"kernels": "liger"}, "compute": {"gpus": 0}}, "need a GPU"),
        ({"compute": {"env": [{"name": "A"}, {"name": "A"}]}}, "two items have the same name"),
        (
            {"dataset": {"train": [{"uri": "s3://data/a", "split": "train"}]}},
            "subset and split are of a whole data set",
        ),
        ({"dataset": {"train": [{"uri": "hf://o/d/en", "subset": "en"}]}}, "subset and split are of a whole data set"),
        ({"dataset": {"train": [{"uri": "s3://data/a", "revision": "v1"}]}}, "only hf:// sources have revisions"),
        ({"tracking": {"neptune": {"project": "a/b"}}}, "Neptune's service ended in March 2026: use mlflow, wandb"),
        ({"tracking": {"wandb": {"project": "p"}}}, "mode online needs secretRef"),
        ({"tracking": {"wandb": {"project": "p", "mode": "offline", "secretRef": {"name": "k"}}}}, "asks no server"),
        ({"tracking": {"mlflow": {"uri": "http://me:secret@mlflow"}}}, "should match pattern"),
        ({"tracking": {"mlflow": {"uri": "file:///tmp/runs"}}}, "should match pattern"),
    ],
)
def test_wrong_requests_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FineTuneJob.parse(job_body(**spec))


@pytest.mark.parametrize("what", ["test", "general"])
def test_a_token_may_open_one_set_alone(what: str) -> None:
    model = {"uri": "s3://models/base", "secretRef": {"name": "hf-token"}}
    dataset: dict[str, Any] = {"train": [{"uri": "s3://data/a"}]}
    FineTuneJob.parse(job_body(model=model, dataset={**dataset, what: {"uri": "hf://o/d", "split": "test"}}))
    with pytest.raises(ValidationError, match="secretRef"):
        FineTuneJob.parse(job_body(model=model, dataset=dataset))


@pytest.mark.parametrize("method", get_args(MethodName))
@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_a_method_and_an_objective_go_together_or_are_refused(method: MethodName, objective: ObjectiveName) -> None:
    """Those that do are in the table of defaults, and each of them is trained in `tests/trainer`."""
    body = job_body(method={method: {}}, objective={objective: LEAST.get(objective, {})})
    if (method, objective) in DEFAULTS:
        FineTuneJob.parse(body)
        return
    with pytest.raises(ValidationError, match=f"method {method} is for objective"):
        FineTuneJob.parse(body)


@pytest.mark.parametrize(
    ("objective", "column"), [("sft", "chosen"), ("dpo", "messages"), ("kto", "rejected"), ("rlhf", "completion")]
)
def test_columns_that_an_objective_does_not_read_are_refused(objective: str, column: str) -> None:
    data = {"train": [{"uri": "s3://datasets/a.jsonl"}], "columns": {column: "mine"}}
    with pytest.raises(ValidationError, match=f"rows of objective {objective} have only the columns"):
        FineTuneJob.parse(job_body(objective={objective: LEAST.get(objective, {})}, dataset=data))


def serve_with(*args: str) -> None:
    """Have the model read a ModelDeployment with these arguments of vLLM."""
    ModelDeployment.parse(deployment_body(engine={"vllm": {"args": list(args)}}))


@pytest.mark.parametrize("flag", OWNED_FLAGS)
def test_a_flag_of_ours_is_refused_however_it_is_spelt(flag: str) -> None:
    underscored, shortened = flag[:2] + flag[2:].replace("-", "_"), flag[:-1]
    for argument in (flag, f"{flag}=x", f"{flag}.key", underscored, shortened, f"{shortened}=x", f"{shortened}.key=x"):
        with pytest.raises(ValidationError, match="args may not set what Lorikeet sets itself"):
            serve_with("--seed", "1", argument)


@pytest.mark.parametrize(
    "argument",
    [
        "--ssl-keyfile=x",
        "--ssl",
        "--grpc",
        "--grpc-port",
        "--data-parallel-size",
        "--data_parallel_rank",
        "-dp",
        "-dpn",
    ],
)
def test_so_are_flags_that_would_open_another_door_or_start_another_engine(argument: str) -> None:
    with pytest.raises(ValidationError, match="and what begins with --ssl-, --grpc, --data-parallel-, -dp"):
        serve_with(argument)


def test_flags_that_only_look_like_ours_are_taken() -> None:
    others = [
        *("--config-format", "mistral", "--model-impl=vllm", "--model-loader-extra-config.concurrency", "4"),
        *(
            "--max-logprobs",
            "5",
            "--max-num-seqs",
            "8",
            "--pipeline-parallel-size",
            "2",
            "-pp",
            "2",
            "-sc.method",
            "ngram",
        ),
        *("--enable-log-requests", "--enable-prefix-caching", "--gpu_memory_utilization=.9", "--lora-dtype", "auto"),
        *("--dp-sync-interval", "1", "--seed", "-1", "--chat-template", "--hf-overrides=--port", "model", "port=1", ""),
    ]
    serve_with(*others)


@pytest.mark.parametrize("name", ["VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_USE_RUST_FRONTEND"])
def test_variables_that_would_open_an_engine_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="this variable is set by Lorikeet"):
        ModelDeployment.parse(deployment_body(compute={"env": [{"name": name, "value": "1"}]}))


@pytest.mark.parametrize("text", ["x" * 9000, "ü" * 9000, '"\n' * 9000, "🦜" * 5000])
def test_a_record_fits_into_a_termination_message(text: str) -> None:
    message = RunRecord(reason="DataInvalid", message=text).to_message()
    assert len(message.encode()) <= TERMINATION_LIMIT
    again = RunRecord.model_validate(json.loads(message))
    assert again.reason == "DataInvalid"
    assert again.message[:100] == text[:100]


def test_all_signs_fit_into_a_termination_message_beside_all_figures() -> None:
    signs = [Sign(name=name, step=100_000_000, message="x" * 160) for name in SIGN_NAMES]
    numbers: dict[str, Any] = {
        name: 0.000123456 if "float" in str(info.annotation) else 10**11
        for name, info in Metrics.model_fields.items()
        if name not in ("device", "precision", "optimizer", "attention", "kernels", "signs", "warnings")
    }
    metrics = Metrics(
        **numbers,
        device="NVIDIA H100 80GB HBM3",
        precision="bf16",
        optimizer="pagedAdamw8bit",
        attention="eager",
        kernels="liger",
        signs=signs,
    )
    artifacts = Artifacts(
        uri="s3://" + "b" * 200, run_id="r" * 16, revision="a" * 8, sha256="a" * 64, size_bytes=10**11
    )
    message = RunRecord(reason="Published", message="m" * 300, metrics=metrics, artifacts=artifacts).to_message()
    assert len(message.encode()) <= TERMINATION_LIMIT
    assert RunRecord.model_validate_json(message).metrics == metrics


def test_what_signs_mean_and_how_long_a_step_may_take_is_no_part_of_a_runs_id() -> None:
    plain, failing = (
        runs.contract("s3://out/x", StorageAccess(), training=each)
        for each in (
            Training(seed=1),
            Training(seed=1, signs=Signs(fail_on=["Repetition"]), stall_timeout_seconds=60),
        )
    )
    assert ids(plain) == ids(failing)


def test_a_general_set_is_no_part_of_a_runs_id() -> None:
    plain, looked_at = (
        runs.contract("s3://out/x", StorageAccess(), dataset=Dataset.model_validate({**PROMPTS, **more}))
        for more in ({}, {"general": {"uri": "s3://datasets/chat.jsonl"}})
    )
    assert ids(plain) == ids(looked_at)


def test_sources_are_told_with_what_they_are_for() -> None:
    sets = {use: {"uri": f"s3://datasets/{use}"} for use in ("general", "test", "eval")}
    dataset = Dataset.model_validate({"train": [{"uri": f"s3://datasets/{n}"} for n in (1, 2)], **sets})
    contract = runs.contract("s3://out/x", StorageAccess(), dataset=dataset)
    told = [(use, source.uri.rpartition("/")[2]) for use, source in zip(*uses_and_sources(contract), strict=True)]
    expected = [("training", "1"), ("training", "2"), ("evaluation", "eval"), ("test", "test"), ("general", "general")]
    assert told == expected


def uses_and_sources(contract: RunContract) -> tuple[list[Use], list[DataSource]]:
    return data_uses(contract), data_sources(contract)


def test_a_general_set_is_read_as_sft_reads_rows_with_the_usual_names_and_is_cut() -> None:
    own = {"format": "prompt", "columns": {"prompt": "asked"}, "overlong": "fail", "maxLength": 100}
    contract = runs.contract(
        "s3://out/x",
        StorageAccess(),
        dataset=Dataset.model_validate({**PROMPTS, **own}),
        objective=Objective.model_validate(RLHF["objective"]),
    )
    assert read_as(contract, "test") == contract
    general = read_as(contract, "general")
    assert (general.objective.name, general.objective.columns) == ("sft", [])
    dataset = general.dataset
    assert (dataset.format, dataset.columns, dataset.train_on) == ("auto", None, None)
    assert (dataset.overlong, dataset.max_length) == ("truncate", 100)


def ids(contract: RunContract) -> str:
    return run_id(contract.model, contract.dataset, contract.method, contract.objective, contract.training)


def test_a_short_record_is_left_as_it_is() -> None:
    record = RunRecord(reason="Published", message="done")
    assert RunRecord.model_validate_json(record.to_message()) == record
