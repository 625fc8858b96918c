"""The learning rate of each step, as every schedule has it."""

import json

import pytest

from tests.trainer.lab import RATES, Lab

pytestmark = pytest.mark.trainer


@pytest.mark.parametrize(
    ("scheduler", "falls"),
    [("constant", [1, 1, 1]), ("linear", [1, 2 / 3, 1 / 3]), ("cosine", [1, 3 / 4, 1 / 4])],
)
def test_the_rate_rises_in_the_warm_up_and_then_goes_as_the_schedule_says(
    lab: Lab, scheduler: str, falls: list[float]
) -> None:
    """Half of six steps; the cosine of 0, 60 and 120 degrees is 1, 1/2 and -1/2."""
    training = {"maxSteps": 6, "warmupRatio": 0.5, "scheduler": scheduler, "loggingSteps": 1}
    contract = lab.contract("lora", "s3://models/pretrained", "s3://datasets/train.jsonl", training=training)
    result = lab.run(contract)
    assert result.exit_code == 0, result.record
    curve = json.loads(lab.fetch(contract, "metrics.json"))["curve"]
    rates = [point["learningRate"] / RATES["lora"] for point in curve if "learningRate" in point]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, *falls], rel=1e-5)
