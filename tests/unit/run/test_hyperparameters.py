"""How a batch is shared out, where an objective minds."""

import pytest

from lorikeet_api.contract import StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Training
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
