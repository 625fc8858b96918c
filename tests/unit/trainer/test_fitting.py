"""How a run finds its micro batch: when it tries, what is made of what was measured, and what if trying fails."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet_api.batch import USUAL
from lorikeet_api.contract import RunContract, RunRecord, SourceDigest, StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Training
from lorikeet_run import log
from lorikeet_trainer import lifecycle
from lorikeet_trainer.fitting import LARGEST, ROOM, fitting, settle
from lorikeet_trainer.processes import Children
from lorikeet_trainer.state import Layout, Measured, Prepared, StageResult
from tests import runs

PREPARED = Prepared(model=SourceDigest(uri="s3://models/tiny", files=[]), data=[])
RLHF = {"rlhf": {"rewards": [{"regex": {"pattern": "a"}}], "numGenerations": 2}}
DONE = StageResult(exit_code=0)


def contract(gpus: int = 1, objective: dict[str, Any] | None = None, **training: Any) -> RunContract:
    return runs.contract(
        "s3://out/a",
        StorageAccess(),
        gpus=gpus,
        objective=Objective.model_validate(objective or {"sft": {}}),
        training=Training.model_validate({"batchSize": 32, **training}),
    )


def failed(reason: str, code: int) -> StageResult:
    return StageResult(exit_code=code, record=RunRecord(reason=reason, message="so it is"))


def measured(limit: int, *peaks: int) -> Measured:
    return Measured(limit=limit, peaks=dict(enumerate(peaks, 1)))


@given(
    share=st.integers(1, 300),
    fixed=st.integers(0, 10**11),
    each=st.integers(1, 10**10),
    limit=st.integers(1, 10**12),
)
def test_what_is_chosen_fits_and_is_the_largest_that_does(share: int, fixed: int, each: int, limit: int) -> None:
    """Where memory grows by the same for each example."""
    divisors = [size for size in range(1, LARGEST + 1) if share % size == 0]
    room = [size for size in divisors if fixed + size * each <= ROOM * limit]
    assert fitting(share, measured(limit, fixed + each, fixed + 2 * each)) == max(room, default=1)


def test_a_micro_batch_of_two_that_did_not_fit_is_none_of_one() -> None:
    assert fitting(32, measured(100, 40)) == 1


def test_what_takes_no_more_with_each_example_gets_what_is_usual() -> None:
    assert fitting(32, measured(100, 40, 40)) == fitting(32, measured(100, 40, 39)) == USUAL


def test_where_there_is_room_for_a_whole_share_no_more_than_sixteen_are_taken() -> None:
    assert fitting(64, measured(10**9, 100, 101)) == 16


class Trying:
    """Two ranks that have tried, and what is made of it."""

    def __init__(self, folder: Path, *ranks: Measured) -> None:
        self.layout = Layout(folder)
        PREPARED.write(self.layout.prepared)
        for rank, each in enumerate(ranks):
            each.write(self.layout.measured(rank))

    def settle(self, result: StageResult) -> StageResult:
        return settle(contract(gpus=2), self.layout, result, 2.5)

    @property
    def prepared(self) -> Prepared:
        return Prepared.read(self.layout.prepared)


def test_all_ranks_take_what_the_fullest_has_room_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trying = Trying(tmp_path, measured(1000, 100, 150), measured(1000, 400, 500))
    log.set_up()
    assert trying.settle(DONE) == DONE
    assert trying.prepared == PREPARED.model_copy(update={"fitting": 4, "probe_seconds": 2.5})
    told = log.parse(capsys.readouterr().out.splitlines()[-1])
    assert (told["event"], told["size"], told["one"], told["two"]) == ("micro_batch", "4", "400", "500")
    assert not trying.layout.probe.exists()


def test_where_two_examples_are_too_many_for_a_rank_one_is_taken(tmp_path: Path) -> None:
    trying = Trying(tmp_path, measured(1000, 100, 150), measured(1000, 800))
    assert trying.settle(failed("OutOfMemory", 66)) == DONE
    assert trying.prepared.fitting == 1


def test_where_one_example_is_too_many_the_run_ends(tmp_path: Path) -> None:
    trying = Trying(tmp_path, measured(1000, 100))
    end = failed("OutOfMemory", 66)
    assert trying.settle(end) == end


@pytest.mark.parametrize("result", [DONE, failed("InternalError", 70)], ids=["nothing to try on", "a fault"])
def test_without_a_measurement_training_goes_on_with_what_is_usual(tmp_path: Path, result: StageResult) -> None:
    trying = Trying(tmp_path, *([] if result == DONE else [measured(1000, 100, 150)] * 2))
    assert trying.settle(result) == DONE
    assert trying.prepared.fitting is None


@pytest.mark.parametrize(
    ("asked", "kept", "tries"),
    [
        (contract(), None, True),
        (contract(gpus=8), None, True),
        (contract(objective={"dpo": {}}), None, True),
        (contract(microBatchSize=2), None, False),
        (contract(gpus=0), None, False),
        (contract(gpus=32), None, False),
        (contract(objective={"kto": {}}), None, False),
        (contract(objective={"orpo": {}}), None, False),
        (contract(precision="fp16"), None, False),
        (contract(objective=RLHF), None, False),
        (contract(), 8, False),
    ],
    ids=["sft", "GPUs", "dpo", "asked for", "CPU", "a share of one", "kto", "orpo", "fp16", "rlhf", "goes on"],
)
@pytest.mark.parametrize("probed", [DONE, failed("InternalError", 70)], ids=["done", "failed"])
def test_a_run_tries_before_it_trains_where_nobody_else_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: RunContract,
    kept: int | None,
    tries: bool,
    probed: StageResult,
) -> None:
    file, layout = tmp_path / "run.json", Layout(tmp_path / "work")
    file.write_text(asked.model_dump_json(by_alias=True, exclude_none=True))
    done: list[str] = []

    def run_stage(stage: str, *_: object) -> StageResult:
        done.append(stage)
        if stage == "prepare":
            PREPARED.model_copy(update={"fitting": kept}).write(layout.prepared)
        if stage == "probe":
            return probed
        return StageResult(
            exit_code=0, record=RunRecord(reason="Published", message="") if stage == "publish" else None
        )

    monkeypatch.setattr(lifecycle, "_run_stage", run_stage)
    assert lifecycle.run(lifecycle.Options(file, tmp_path / "work", tmp_path / "termination"), Children()) == 0
    assert done == ["prepare", *(["probe"] if tries else []), "train", "publish"]
    assert Prepared.read(layout.prepared).fitting == kept
