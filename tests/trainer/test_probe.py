"""What the stage `probe` measures, held against what steps of each micro batch really take."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.contract import EXIT_PREEMPTED, RunContract, StorageAccess
from lorikeet_api.objectives import Objective
from lorikeet_api.training import Dataset, Method, Training
from lorikeet_storage import Checkpoints
from lorikeet_storage.folders import FOLDERS_VARIABLE
from lorikeet_trainer import lifecycle
from lorikeet_trainer.fitting import LARGEST, ROOM, fitting, is_to_be_found, settle
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.probe import TRIED
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import Layout, Measured, Prepared, StageResult, Trained
from lorikeet_trainer.stop import STOP
from lorikeet_trainer.upload import Uploader
from tests import runs
from tests.trainer import tiny

pytestmark = pytest.mark.trainer

SHARE = 16
PLENTY = 2**40
DONE = StageResult(exit_code=0)
PROBE = """
import json, os, resource, sys
from lorikeet_trainer import probe, stage
from tests.trainer.test_probe import ProcessMemory
tried, limit, more = json.loads(os.environ["PROBE"])
probe.TRIED = tuple(tried)
stage._WORK["probe"] = lambda: lambda contract, layout: probe.probe(contract, layout, ProcessMemory(limit))
if more is not None:
    (size,) = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")]
    resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + more,) * 2)
sys.exit(stage.main())
"""
"""The stage as it is, on this machine's memory: of which there may be only so much more than libraries take."""


class ProcessMemory:
    """This process's memory, in the place of a GPU's."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def begin(self) -> None:
        """Have the kernel forget the peak (proc(5), clear_refs)."""
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the largest resident set since."""
        lines = Path("/proc/self/status").read_text().splitlines()
        (peak,) = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
        return peak * 1024


class Bench:
    """A prepared run on folders of this machine."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.work = folder / "work"
        self.layout = Layout(self.work)
        self.contract = self._contract(folder, **changes)
        self.file = folder / "run.json"
        self.file.write_text(json.dumps(self.contract.to_wire()))
        result = run_stage("prepare", self.file, self.layout)
        assert result.exit_code == 0, result.record

    @staticmethod
    def _contract(folder: Path, **changes: Any) -> RunContract:
        dataset = {"train": [{"uri": "s3://datasets/rows.jsonl"}], "maxLength": 320, "overlong": "truncate"}
        training = {"batchSize": SHARE * max(1, changes.get("gpus", 0)), "attention": "eager", "precision": "fp32"}
        return runs.contract(
            f"s3://out/{folder.name}",
            StorageAccess(),
            dataset=Dataset.model_validate({**dataset, **changes.pop("dataset", {})}),
            method=Method.model_validate(changes.pop("method", {"full": {}})),
            objective=Objective.model_validate(changes.pop("objective", {"sft": {}})),
            training=Training.model_validate({**training, **changes.pop("training", {})}),
            **changes,
        )

    def probe(self, *tried: int, limit: int = PLENTY, more: int | None = None) -> list[StageResult]:
        """Run the stage in all its ranks; return how each ended."""
        ranks, port = self.contract.ranks, lifecycle._free_port()
        told = {"PROBE": json.dumps([tried or TRIED, limit, more]), "OMP_NUM_THREADS": "1"}
        # Large pieces go back to the kernel when they are freed, so that what is resident is what is used.
        thrifty = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        arguments = ["probe", "--contract", str(self.file), "--work", str(self.work), "--rank"]
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PROBE, *arguments, str(rank)],
                env=lifecycle.environment("probe", rank, ranks, port) | told | thrifty,
            )
            for rank in range(ranks)
        ]
        for each in started:
            each.wait(timeout=200)
        return [StageResult.read(self.layout.result("probe", rank)) for rank in range(ranks)]

    def measured(self) -> list[Measured]:
        """Return what each rank has measured."""
        return [Measured.read(self.layout.measured(rank)) for rank in range(self.contract.ranks)]


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model whose activations weigh more than it does, and rows, the longest of which is cut."""
    root = tmp_path_factory.mktemp("probe")
    tiny.write_model(root / "tiny", num_hidden_layers=4)
    texts = [row["prompt"] for row in tiny.rows()[0]]
    rows = [*tiny.rows()[0], {"prompt": "All of them?", "completion": " ".join(texts)}]
    (root / "rows.jsonl").write_bytes(tiny.jsonl(rows))
    pairs = [*tiny.preferences()[0], {"prompt": "All?", "chosen": " ".join(texts), "rejected": "no"}]
    (root / "pairs.jsonl").write_bytes(tiny.jsonl(pairs))
    (root / "out").mkdir()
    sources = {f"s3://datasets/{name}": str(root / name) for name in ("rows.jsonl", "pairs.jsonl")}
    told = [{"s3://models/tiny": str(root / "tiny"), **sources}, {"s3://out": str(root / "out")}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDERS_VARIABLE, json.dumps(told))
        yield


@pytest.fixture(scope="module")
def tried(folders: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Measured, StageResult]:
    """What steps of some micro batches take, and how a rank ends for which one of them is too large."""
    bench = Bench(tmp_path_factory.mktemp("bench"))
    (result,) = bench.probe(1, 2, 4, 8, 16, 2000, more=3 * 2**30)
    return bench.measured()[0], result


def test_under_any_limit_at_least_half_of_what_would_fit_is_chosen_and_fits(
    tried: tuple[Measured, StageResult],
) -> None:
    """Of those up to 16; by the real peaks of all micro batches, of which the stage tries only the first two."""
    peaks = tried[0].peaks
    assert list(peaks) == [1, 2, 4, 8, 16]
    known = {size: peaks[size] for size in TRIED}
    for room in range(peaks[1], peaks[16] + 2**20, 2**20):
        limit = math.ceil(room / ROOM)
        best = max(size for size, peak in peaks.items() if peak <= ROOM * limit)
        found = fitting(SHARE, Measured(limit=limit, peaks=known))
        assert 2 * found >= best
        assert peaks[found] <= limit
    assert fitting(SHARE, Measured(limit=PLENTY, peaks=known)) == LARGEST


def test_a_micro_batch_that_is_too_large_ends_the_rank_and_not_what_it_has_measured(
    tried: tuple[Measured, StageResult],
) -> None:
    measured, result = tried
    assert result.record is not None
    assert (result.exit_code, result.record.reason) == (66, "OutOfMemory")
    assert measured.peaks


def test_training_uses_what_was_found_and_keeps_it_on_another_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, training = {"train": [{"uri": "s3://datasets/pairs.jsonl"}]}, {"maxSteps": 3}
    bench = Bench(tmp_path, objective={"dpo": {}}, method={"lora": {}}, dataset=dataset, training=training)
    contract, layout = bench.contract, bench.layout
    assert bench.probe() == [DONE]
    (found,) = bench.measured()
    tight = int((found.peaks[1] + 2.5 * (found.peaks[2] - found.peaks[1])) / ROOM)
    found.model_copy(update={"limit": tight}).write(layout.measured(0))
    assert {path.name for path in bench.work.iterdir()} == {"data", "model", "prepared.json", "probe", "results"}
    assert settle(contract, layout, DONE, 1.0) == DONE

    with monkeypatch.context() as during:
        during.setattr(Guarded, "training_step", stopping(Guarded.training_step))
        assert run_stage("train", bench.file, layout).exit_code == EXIT_PREEMPTED
    STOP.requested = False
    checkpoints = Checkpoints(contract, Prepared.read(layout.prepared).basis(contract.date))
    Uploader(checkpoints, layout, keep=1).run(lambda seconds: True)

    other = Layout(tmp_path / "other")
    assert run_stage("prepare", bench.file, other).exit_code == 0
    assert not is_to_be_found(contract.model_copy(update={"gpus": 1}), other)
    assert run_stage("train", bench.file, other).exit_code == 0
    metrics = Trained.read(other.trained).metrics
    assert (metrics.resumed_from_step, metrics.micro_batch_size) == (1, 2)


def stopping(step_made: Callable[..., Any]) -> Callable[..., Any]:
    """Return a training step that is told to stop while it is made."""

    def stopped(*args: Any, **kwargs: Any) -> Any:
        STOP.requested = True
        return step_made(*args, **kwargs)

    return stopped


def test_ranks_that_share_a_model_out_measure_alike_and_agree(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gpus=2, allow_cpu=True, dataset={"packing": True}, training={"attention": "sdpa"})
    assert bench.probe() == [DONE, DONE]
    first, second = bench.measured()
    assert first.peaks.keys() == second.peaks.keys() == set(TRIED)
    assert first.peaks[2] > first.peaks[1]
    second.model_copy(update={"limit": int(second.peaks[2] / ROOM) + 1}).write(bench.layout.measured(1))
    assert settle(bench.contract, bench.layout, DONE, 1.0) == DONE
    assert Prepared.read(bench.layout.prepared).fitting == 2
