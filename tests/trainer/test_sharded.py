"""A full fine-tune on several ranks, each of which holds a part of the model."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load

from lorikeet_api.contract import RunContract
from lorikeet_run.log import parse
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab
from tests.trainer.test_resume import steps_stored

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"
RANKS = {"gpus": 2, "allow_cpu": True}
TRAINING = {
    "epochs": 99.0,
    "maxSteps": 12,
    "microBatchSize": 2,
    "precision": "fp32",
    "loggingSteps": 1,
    "evalSteps": 6,
    "checkpoints": {"everySteps": 5, "afterSuccess": "keepBest"},
}
"""Several micro batches a step, and a rank that is a row short in each evaluation."""


@dataclass
class Run:
    contract: RunContract
    log: list[dict[str, str]]


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model with random weights, some of which go by two names, and the data."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small", tie_word_embeddings=True), "small")
        made.put_rows("odd.jsonl", tiny.rows()[1][:5])
        yield made


def contract(lab: Lab, **changes: Any) -> RunContract:
    held_out = {"eval": {"uri": "s3://datasets/odd.jsonl"}}
    return lab.contract("full", MODEL, TRAIN, **{"training": TRAINING, "dataset": held_out, **changes})


@pytest.fixture(scope="module")
def sharded(lab: Lab) -> Run:
    """A run of two ranks that nothing interrupts."""
    made = contract(lab, **RANKS)
    code, record, log = lab.start(made).end()
    assert (code, record["reason"]) == (0, "Published"), log
    return Run(made, [parse(line) for line in log.splitlines()])


def weights(lab: Lab, contract: RunContract, name: str) -> dict[str, torch.Tensor]:
    return load(lab.fetch(contract, name))


def test_each_rank_holds_half_of_the_parameters(sharded: Run) -> None:
    (model,) = [line for line in sharded.log if line.get("event") == "model"]
    assert model["sharded"] == "True"
    assert int(model["held_parameters"]) == pytest.approx(int(model["parameters"]) / 2, rel=0.01)


def test_sharded_weights_are_those_of_one_rank_at_the_same_effective_batch(lab: Lab, sharded: Run) -> None:
    alone = contract(lab)
    assert lab.run(alone).exit_code == 0
    for name in ("checkpoints/best/model.safetensors", "model/model.safetensors"):
        ours, theirs = (weights(lab, each, name) for each in (sharded.contract, alone))
        assert {key: value.dtype for key, value in ours.items()} == {key: value.dtype for key, value in theirs.items()}
        torch.testing.assert_close(ours, theirs)
    assert lab.published(sharded.contract) == lab.published(alone)
    for name in ("config.json", "generation_config.json"):
        assert lab.fetch(sharded.contract, f"model/{name}") == lab.fetch(alone, f"model/{name}")


def test_a_sharded_run_that_is_stopped_ends_as_if_nothing_had_been(lab: Lab, sharded: Run) -> None:
    stopped = contract(lab, **RANKS)
    run = lab.start(stopped)
    run.await_line("event=step step=2 ")
    run.process.send_signal(signal.SIGTERM)
    code, record, log = run.end()
    assert (code, record["reason"]) == (75, "Preempted"), log
    (step,) = steps_stored(lab, stopped)[:1]
    code, record, log = lab.start(stopped).end()
    assert (code, record["metrics"]["resumedFromStep"]) == (0, step), log
    for name in ("checkpoints/best/model.safetensors", "model/model.safetensors"):
        assert lab.fetch(stopped, name) == lab.fetch(sharded.contract, name)
    curves = [json.loads(lab.fetch(each, "metrics.json"))["curve"] for each in (stopped, sharded.contract)]
    assert curves[0] == curves[1]
