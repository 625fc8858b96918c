"""Which runs share a model's weights out among their ranks."""

from typing import Any

import pytest
import torch

from lorikeet_api.contract import StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Method, Training
from lorikeet_trainer.device import Compute
from lorikeet_trainer.methods.sharded import shards
from tests import runs

pytestmark = pytest.mark.trainer

RLHF: dict[str, Any] = {"rlhf": {"rewards": [{"regex": {"pattern": "a"}}], "numGenerations": 2}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"optimizer": "adamw"}, True),
        ({"dtype": torch.float32}, True),
        ({"objective": {"dpo": {}}}, True),
        ({"method": {"lora": {}}}, False),
        ({"ranks": 1}, False),
        ({"objective": RLHF}, False),
        ({"optimizer": "adamw8bit"}, False),
        ({"optimizer": "pagedAdamw8bit"}, False),
        ({"dtype": torch.float16}, False),
    ],
    ids=["full", "adamw", "fp32", "dpo", "lora", "one rank", "rlhf", "8 bits", "paged", "fp16"],
)
def test_ranks_share_out_what_is_trained_whole_where_nothing_stands_against_it(
    changes: dict[str, Any], expected: bool
) -> None:
    asked: dict[str, Any] = {"method": {"full": {}}, "objective": {"sft": {}}, "ranks": 2, "dtype": torch.bfloat16}
    asked |= changes
    contract = runs.contract(
        "s3://out/a",
        StorageAccess(),
        method=Method.model_validate(asked["method"]),
        objective=Objective.model_validate(asked["objective"]),
        training=Training.model_validate({"optimizer": asked["optimizer"]} if "optimizer" in asked else {}),
    )
    assert shards(contract, Compute(torch.device("cpu"), asked["dtype"], 0, asked["ranks"])) is expected
