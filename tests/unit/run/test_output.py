"""What a run finds where it is to publish. `tests/trainer/test_publish.py` has the rest, against a real S3 server."""

from pathlib import Path

import pytest

from lorikeet_api.contract import Metrics, StorageAccess
from lorikeet_api.signs import Sign, Signs
from lorikeet_api.training import Training
from lorikeet_run.errors import RunError
from lorikeet_run.output import adopt_or_take
from lorikeet_storage import publish
from lorikeet_storage.folders import FOLDERS_VARIABLE, use_folders
from tests import runs


def test_a_result_with_a_sign_that_the_request_forbids_is_not_adopted_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDERS_VARIABLE, "")
    use_folders({}, {"s3://out/x": tmp_path / "out"})
    (tmp_path / "work").mkdir()
    (tmp_path / "work/adapter").touch()
    contract = runs.contract("s3://out/x", StorageAccess())
    signs = [Sign(name="LossSpike", step=7, message="9 after 2")]
    publish(tmp_path / "work", runs.draft(contract).model_copy(update={"metrics": Metrics(steps=9, signs=signs)}))
    strict = contract.model_copy(update={"training": Training(seed=1, signs=Signs(fail_on=["LossSpike"]))})

    with pytest.raises(RunError) as refused:
        adopt_or_take(strict, 0)
    folder = f"s3://out/x/{contract.run_id}"
    assert refused.value.reason == "LossSpike"
    assert f"the result of the same request in {folder} has the sign LossSpike from step 7 on" in refused.value.message
    assert "stays as it is: leave LossSpike out there, in a new job, to adopt it" in refused.value.message
    assert refused.value.metrics == Metrics(steps=9, signs=signs)

    adopted = adopt_or_take(contract, 0)
    assert adopted is not None
    assert adopted.metrics is not None
    assert (adopted.reason, adopted.metrics.signs) == ("Adopted", signs)
