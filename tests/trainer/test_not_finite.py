"""Runs that come to something that is no number: each ends at its step, and nothing of it is kept or published."""

from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.methods.trainable import trained_parameters
from lorikeet_trainer.state import StageResult
from tests.trainer import tiny
from tests.trainer.lab import Lab

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/pretrained", "s3://datasets/train.jsonl"


def failure(result: StageResult) -> tuple[int, str, str]:
    assert result.record is not None
    return result.exit_code, result.record.reason, result.record.message


def test_a_loss_that_is_no_number_ends_the_run_at_its_step(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of no number reaches the loss; transformers would log 0 and go on."""
    (token,) = tiny.tokenizer(tiny.CHATML)("%", add_special_tokens=False)["input_ids"]
    step_made = Guarded.training_step

    def poisoned(self: Any, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        if self.state.global_step + 1 == 5:
            inputs = {**inputs, "input_ids": torch.full_like(inputs["input_ids"], token)}
        return step_made(self, model, inputs, *more)

    monkeypatch.setattr(Guarded, "training_step", poisoned)
    uri = lab.put_folder(tiny.write_model(lab.root / "poisoned", poisoned="%"), "poisoned")
    contract = lab.contract("lora", uri, TRAIN, training={"microBatchSize": 2, "maxSteps": 6})
    code, reason, message = failure(lab.run(contract))
    assert (code, reason) == (64, "LossNotFinite")
    assert "the training loss is not a finite number at step 5:" in message
    assert "training.learningRate" in message
    assert lab.published(contract) == ["run.json"]


@pytest.mark.parametrize("step", [2, 4], ids=["before a checkpoint", "after the last step"])
def test_a_weight_that_is_no_number_is_neither_kept_nor_published(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """No loss has seen it yet."""
    make = Guarded.create_optimizer

    def spoiling(self: Guarded, *given: Any) -> Optimizer:
        def spoil(*_: object) -> None:
            if self.state.global_step + 1 == step:
                trained_parameters(self.trainable.model)[0].data[0, 0] = torch.nan

        made = make(self, *given)
        made.register_step_post_hook(spoil)
        return made

    monkeypatch.setattr(Guarded, "create_optimizer", spoiling)
    training = {"maxSteps": 4, "checkpoints": {"everySteps": 2}} if step == 2 else {"maxSteps": 4}
    contract = lab.contract("lora", MODEL, TRAIN, training=training)
    code, reason, message = failure(lab.run(contract))
    assert (code, reason) == (64, "LossNotFinite")
    assert f"a trained weight is not a finite number at step {step}:" in message
    assert not lab.layout(contract).checkpoints.exists()
    assert lab.published(contract) == ["run.json"]
