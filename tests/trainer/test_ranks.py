"""Adapters that several ranks train, each of which holds the whole model: what comes out is what one rank makes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load

from lorikeet_api.contract import RunContract
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import METHODS, Lab, open_lab
from tests.trainer.test_sharded import losses, stopped

pytestmark = pytest.mark.trainer

TRAINING = {"epochs": 99.0, "maxSteps": 40, "microBatchSize": 2, "precision": "fp32", "loggingSteps": 1}
"""Several micro batches a step, of rows that differ in length: a mean of the ranks' means would be another loss."""


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        rows = [{"prompt": f"count {number}", "completion": "one two " * (number % 5 + 1)} for number in range(48)]
        made.put_rows("uneven.jsonl", rows)
        yield made


def contract(lab: Lab, method: str, **changes: Any) -> RunContract:
    rows = "s3://datasets/uneven.jsonl"
    return lab.contract(METHODS[method], "s3://models/small", rows, training=TRAINING, **changes)


def weights(lab: Lab, run: RunContract) -> dict[str, torch.Tensor]:
    return load(lab.fetch(run, "adapter/adapter_model.safetensors"))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_of_two_ranks_is_that_of_one_also_if_the_run_was_stopped_on_the_way(lab: Lab, method: str) -> None:
    """At the same effective batch."""
    shared, alone = contract(lab, method, gpus=2, allow_cpu=True), contract(lab, method)
    step = stopped(lab, shared, lab.start(shared))
    code, record, log = lab.start(shared).end()
    assert (code, record["metrics"]["resumedFromStep"]) == (0, step), log

    assert lab.run(alone).exit_code == 0
    theirs = weights(lab, alone)
    assert any(tensor.abs().max() > 1e-2 for name, tensor in theirs.items() if "lora_B" in name), "it has trained"
    torch.testing.assert_close(weights(lab, shared), theirs, rtol=0, atol=1e-3)
    assert losses(lab, shared) == pytest.approx(losses(lab, alone), abs=1e-3)
