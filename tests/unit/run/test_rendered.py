"""Whether a run can begin with its rendered rows: told by their counts alone."""

from typing import Any

import pytest

from lorikeet_api.contract import RunContract, StorageAccess, Use
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Dataset, Training, WeightedDataSource
from lorikeet_run.errors import RunError
from lorikeet_run.rendered import Counts, check
from tests import runs

SOUND = Counts(kept=10, answers=10, stopped=10, longest=20, largest=99)
PROMPTS = Counts(kept=3, longest=20, largest=99)
RLHF = {"numGenerations": 4, "maxCompletionLength": 8, "rewards": [{"regex": {"pattern": "a"}}]}


def contract(weights: tuple[float | None, ...] = (None,), **changes: Any) -> RunContract:
    train = [WeightedDataSource(uri="s3://datasets/x.jsonl", weight=weight) for weight in weights]
    return runs.contract("s3://out/x", StorageAccess(), dataset=Dataset(train=train), **changes)


def test_counts_add_up() -> None:
    assert SOUND + Counts(kept=1, dropped=2, longest=30) == Counts(11, 2, 10, 10, 30, 99)
    assert check(contract(), [("training", SOUND), ("evaluation", PROMPTS)], 20, 100) == 100


@pytest.mark.parametrize(
    ("of", "counts", "reason", "words"),
    [
        (contract(), [("training", SOUND), ("test", Counts(dropped=4))], "DataInvalid", "no test example is left: of"),
        (contract((1, 2)), [("training", SOUND), ("training", Counts(dropped=1))], "DataInvalid", "training source 2"),
        (contract(), [("training", SOUND), ("general", Counts(kept=1, longest=31))], "MethodNotApplicable", "31 token"),
        (contract(), [("training", SOUND + Counts(largest=100))], "ModelInvalid", "the token id 100"),
        (contract(), [("training", SOUND + Counts(answers=9))], "ModelInvalid", "without a stop token"),
        (
            contract(objective=Objective.model_validate({"rlhf": RLHF}), training=Training(batch_size=16)),
            [("training", PROMPTS)],
            "DataInvalid",
            "there are 3 prompts to train on, and a step takes 4",
        ),
        (
            contract(objective=Objective.model_validate({"rlhf": RLHF}), training=Training(batch_size=4)),
            [("training", PROMPTS + Counts(longest=25))],
            "MethodNotApplicable",
            "its answers up to 8, and the base model 30 positions",
        ),
    ],
    ids=["none left", "a weight", "too long", "an unknown id", "no end", "too few prompts", "no room for answers"],
)
def test_what_a_run_cannot_begin_with_is_said(
    of: RunContract, counts: list[tuple[Use, Counts]], reason: str, words: str
) -> None:
    with pytest.raises(RunError, match=words) as caught:
        check(of, counts, 30, 100)
    assert caught.value.reason == reason
