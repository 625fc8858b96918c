"""How a batch is shared out, where an objective minds."""

import pytest

from lorikeet_api.contract import StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.signs import Signs
from lorikeet_api.training import DataSource, Training
from lorikeet_run.errors import RunError
from lorikeet_run.hyperparameters import Hyperparameters
from tests import runs


@pytest.mark.parametrize(("batch", "micro"), [(1, None), (7, None), (4, 1)])
def test_kto_needs_two_answers_in_each_micro_batch(batch: int, micro: int | None) -> None:
    training = Training(batch_size=batch, micro_batch_size=micro)
    kto = Objective.model_validate({"kto": {}})
    run = runs.contract("s3://out/a", StorageAccess(), objective=kto, training=training)
    with pytest.raises(RunError, match="set microBatchSize to 2 or more"):
        Hyperparameters.of(run)
    assert Hyperparameters.of(runs.contract("s3://out/a", StorageAccess(), training=training)).micro_batch_size == 1


def test_a_micro_batch_that_is_known_to_fit_is_the_largest_where_nobody_asks() -> None:
    open_one, asked = (
        runs.contract("s3://out/a", StorageAccess(), gpus=2, training=Training(batch_size=48, micro_batch_size=micro))
        for micro in (None, 2)
    )
    assert [Hyperparameters.of(open_one, fitting).micro_batch_size for fitting in (None, 1, 7, 16)] == [4, 1, 6, 12]
    assert [Hyperparameters.of(open_one, fitting).tries_micro_batch for fitting in (None, 4)] == [True, False]
    found = Hyperparameters.of(asked, 16)
    assert (found.micro_batch_size, found.accumulation, found.tries_micro_batch) == (2, 12, False)


def test_what_a_run_is_to_fail_on_must_be_measured() -> None:
    failing = Training(signs=Signs(fail_on=["Forgetting"]))
    plain = runs.contract("s3://out/a", StorageAccess(), training=failing)
    with pytest.raises(RunError, match=r"failOn has Forgetting.*set dataset\.general") as refused:
        Hyperparameters.of(plain)
    assert refused.value.reason == "InvalidContract"
    general = plain.dataset.model_copy(update={"general": DataSource(uri="s3://datasets/general.jsonl")})
    Hyperparameters.of(plain.model_copy(update={"dataset": general}))


def of_rlhf(**training: int | float) -> Hyperparameters:
    rlhf = Objective.model_validate({"rlhf": {"numGenerations": 4, "rewards": [{"regex": {"pattern": "a"}}]}})
    return Hyperparameters.of(
        runs.contract("s3://out/a", StorageAccess(), objective=rlhf, training=Training.model_validate(training))
    )


def test_a_step_of_rlhf_takes_whole_groups_of_answers_and_an_epoch_whole_steps() -> None:
    hyper = of_rlhf(batchSize=12, epochs=2.0)
    assert (hyper.micro_batch_size, hyper.accumulation, hyper.generations) == (4, 3, 4)
    assert [hyper.steps(prompts) for prompts in (3, 5, 6, 61)] == [2, 2, 4, 40]
    with pytest.raises(RunError, match=r"2 prompts to train on, and a step takes 3 .*: lower training.batchSize"):
        hyper.steps(2)


def test_answers_that_cannot_be_shared_out_over_prompts_are_refused() -> None:
    with pytest.raises(RunError, match=r"make it a multiple of objective.rlhf.numGenerations \(it is 10\)"):
        of_rlhf(batchSize=10)
