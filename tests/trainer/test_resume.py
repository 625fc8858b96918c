"""What an interruption costs: a run that was killed or stopped ends as if nothing had been."""

import json
import logging
import random
import signal
import time
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest

from lorikeet_api.contract import RunContract
from lorikeet_run.report import Sample
from lorikeet_trainer.state import StageResult, Trained
from lorikeet_trainer.stop import STOP
from lorikeet_trainer.upload import Uploader
from tests.s3 import S3Server
from tests.slow_store import slow_store
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, Lab, open_lab

pytestmark = pytest.mark.trainer
_log = logging.getLogger(__name__)

MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
RANDOM = {**ADAPTER, "dropout": 0.05}
METHODS: dict[str, Any] = {
    "lora": {"lora": RANDOM},
    "qlora": {"qlora": RANDOM},
    "full": "full",
    "experts": "full",
    "bottleneck": {"bottleneck": {"reductionFactor": 4, "placement": "houlsby"}},
    "pissa": {"lora": {**ADAPTER, "init": "pissa"}},
    "variants": {"qlora": {**RANDOM, "dora": True, "loraPlusRatio": 4.0, "modulesToSave": ["embed_tokens"]}},
}
COURSE = {
    "checkpoint.json", "course.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json",
}  # fmt: skip
"""What a checkpoint has of the run."""
LORA, BOTTLENECK = {"adapter_config.json", "adapter_model.safetensors"}, {"bottleneck.safetensors"}
"""What it has of an adapter."""
WHOLE = ("full", "experts")
STEPS = {"maxSteps": 14, "batchSize": 8, "microBatchSize": 4, "loggingSteps": 3}
"""Of 60 rows: 8 steps an epoch, the last one with half a batch."""


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model with random weights and the data; one thread, on which sums have one order."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        made.put_folder(tiny.write_experts(made.root / "experts"), "experts")
        yield made


@pytest.fixture
def stop() -> Iterator[None]:
    yield
    STOP.requested = False


def steps_stored(lab: Lab, contract: RunContract) -> list[int]:
    return [stored.checkpoint.step for stored in lab.checkpoints(contract).newest()]


def files_stored(lab: Lab, contract: RunContract, step: int) -> list[str]:
    """Return the names of a checkpoint's files."""
    names = lab.published(contract)
    return sorted(name.rpartition("/")[2] for name in names if name.startswith(f"checkpoints/{step:08}-"))


def outcome(lab: Lab, contract: RunContract) -> tuple[dict[str, str], list[dict[str, Any]], list[Sample]]:
    """Return what must not depend on interruptions: the weights' digests, the loss curve, and the report's samples."""
    weights = {file.path: file.sha256 for file in lab.manifest(contract).files if file.path.endswith(".safetensors")}
    metrics = json.loads(lab.fetch(contract, "metrics.json"))
    # An evaluation that is made up for stands behind the loss of its step.
    curve: list[dict[str, Any]] = sorted(metrics["curve"], key=lambda point: (point["step"], "loss" in point))
    samples = Trained.read(lab.layout(contract).trained).samples
    assert weights
    assert [point["step"] for point in metrics["pace"]] == [point["step"] for point in curve if "loss" in point]
    assert bool(samples) == bool(metrics["metrics"].get("evalExamples"))
    assert not samples or any(sample.before != sample.after for sample in samples)
    return weights, curve, samples


def run_until(lab: Lab, contract: RunContract, step: int, patch: pytest.MonkeyPatch) -> StageResult:
    """Run in this process, told to stop during `step`."""
    from lorikeet_trainer.loop import Guarded

    step_made = Guarded.training_step

    def stopped(self: Any, *args: Any, **kwargs: Any) -> Any:
        STOP.requested = self.state.global_step + 1 >= step
        return step_made(self, *args, **kwargs)

    with patch.context() as during:
        during.setattr(Guarded, "training_step", stopped)
        result = lab.run(contract)
    STOP.requested = False
    return result


def contract_of(lab: Lab, method: str) -> RunContract:
    model = "s3://models/experts" if method == "experts" else MODEL
    judge = {"test": HELD_OUT["eval"]} if method == "lora" else {}
    return lab.contract(METHODS[method], model, TRAIN, training=STEPS, dataset=HELD_OUT | judge)


@pytest.fixture(scope="module", params=list(METHODS))
def method(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="module")
def whole(lab: Lab, method: str) -> RunContract:
    """A run that nothing has stopped."""
    contract = contract_of(lab, method)
    assert lab.run(contract).exit_code == 0
    return contract


@pytest.mark.parametrize("where", [5, 8], ids=["in an epoch", "after an epoch"])
def test_a_stopped_run_ends_as_if_nothing_had_been(
    lab: Lab, method: str, whole: RunContract, where: int, monkeypatch: pytest.MonkeyPatch, stop: None
) -> None:
    stopped = contract_of(lab, method)
    first = run_until(lab, stopped, where, monkeypatch)
    assert (first.exit_code, first.record and first.record.reason) == (75, "Preempted")
    Uploader(lab.checkpoints(stopped), lab.layout(stopped), keep=2).run(lambda seconds: True)
    assert steps_stored(lab, stopped) == [where]
    if method not in WHOLE:
        weights = BOTTLENECK if method == "bottleneck" else LORA
        assert files_stored(lab, stopped, where) == sorted(COURSE | weights), "nothing of the base"
    second = lab.run(stopped)
    assert second.exit_code == 0, second.record
    assert second.record is not None
    assert second.record.metrics is not None
    assert second.record.metrics.resumed_from_step == where
    assert not lab.layout(stopped).resume.exists(), "as large as the model, and read"
    assert outcome(lab, stopped) == outcome(lab, whole)
    before = lab.manifest(whole).metrics
    assert second.record.metrics.train_loss == before.train_loss
    assert second.record.metrics.base_test_loss == before.base_test_loss
    assert (before.base_test_loss is None) == (method != "lora")
    assert steps_stored(lab, stopped) == [], "a published run needs none"


def test_a_run_that_is_told_to_stop_in_its_last_step_is_published(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, stop: None
) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, training={**STEPS, "maxSteps": 2}, dataset=HELD_OUT)
    assert run_until(lab, contract, 2, monkeypatch).exit_code == 0
    assert lab.manifest(contract).metrics.steps == 2


def test_a_killed_run_ends_as_if_nothing_had_been(lab: Lab) -> None:
    """Killed at five random steps, once in the middle of an upload; each time a pod with an empty disk goes on."""
    often = {
        **STEPS,
        "epochs": 99.0,
        "maxSteps": 100,
        "loggingSteps": 1,
        "evalSteps": 40,
        "checkpoints": {"everySteps": 4},
    }
    whole = lab.contract(METHODS["lora"], MODEL, TRAIN, training=often, dataset=HELD_OUT)
    code, record, log = lab.start(whole).end()
    assert code == 0, log
    seed = random.randrange(1000)
    chance = random.Random(seed)
    steps = list(accumulate(chance.randint(8, 18) for _ in range(5)))
    drawn = f"seed {seed}: killed at steps {steps}"
    _log.warning(drawn)
    with slow_store(lab.server, None) as store:
        killed = lab.contract(METHODS["lora"], MODEL, TRAIN, training=often, dataset=HELD_OUT, storage=store.access)
        reached = 0
        for number, step in enumerate(steps):
            cuts_an_upload = number == 2
            store.rate = 50_000 if cuts_an_upload else None
            run = lab.start(killed)
            run.await_line("event=checkpoint ")
            before = store.received
            run.await_line(f"event=step step={step} ")
            while cuts_an_upload and store.received < before + 20_000:
                run.await_line("event=step")
            run.kill()
            store.rate = None
            newest = max(steps_stored(lab, killed), default=0)
            assert newest == reached if cuts_an_upload else newest >= reached, drawn
            reached = newest
        code, record, log = lab.start(killed).end()
    assert code == 0, log
    assert record["metrics"]["resumedFromStep"] == reached > 0, drawn
    assert outcome(lab, killed) == outcome(lab, whole), drawn


def test_sigterm_saves_what_two_ranks_have_trained_and_publishes_nothing(lab: Lab) -> None:
    training = {"epochs": 1000.0, "loggingSteps": 1}
    contract = lab.contract("lora", MODEL, TRAIN, gpus=2, allow_cpu=True, training=training)
    run = lab.start(contract)
    run.await_line("event=step step=3 ")
    run.process.send_signal(signal.SIGTERM)
    code, record, _ = run.end()
    (step,) = steps_stored(lab, contract)
    assert (code, record["reason"], record["retryable"]) == (75, "Preempted", True)
    assert {name.partition("/")[0] for name in lab.published(contract)} == {"run.json", "checkpoints"}
    assert f"it goes on from the checkpoint of step {step}" in record["message"]
    again = lab.start(contract)
    assert f"step={step + 1} " in again.await_line("event=step")
    again.kill()


def test_a_store_that_goes_away_in_the_middle_of_a_checkpoint_holds_nothing_up(lab: Lab) -> None:
    training = {"epochs": 99.0, "maxSteps": 250, "loggingSteps": 1, "checkpoints": {"everySteps": 10}}
    contract = lab.contract("lora", MODEL, TRAIN, training=training)
    run = lab.start(contract)
    run.await_line("event=checkpoint_stored")
    lab.server.stop()
    try:
        run.await_line("event=wait")
        run.await_line("event=step step=250 ")
    finally:
        lab.server.start()
    code, record, log = run.end()
    assert (code, record["reason"]) == (0, "Published"), log


def test_a_store_that_is_away_costs_neither_run_nor_checkpoint(lab: Lab) -> None:
    training = {"epochs": 1000.0, "loggingSteps": 1, "checkpoints": {"everySteps": 20}}
    run = lab.start(lab.contract("lora", MODEL, TRAIN, training=training))
    run.await_line("event=checkpoint_stored")
    lab.server.stop()
    try:
        run.await_line("event=wait")
        back = time.monotonic() + 20
        while time.monotonic() < back:
            step = run.await_line("event=step")
    finally:
        lab.server.start()
    before = int(step.split(" step=")[1].split()[0])
    # The one that was on its way when the store went, then the newest: those in between are worth nothing any more.
    first, second = (run.await_line("event=checkpoint_stored").split(" step=")[1].split()[0] for _ in range(2))
    assert int(first) < before - 20 <= int(second)
    run.kill()


def test_the_newest_are_kept_and_a_damaged_one_is_passed_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, stop: None
) -> None:
    training = {**STEPS, "checkpoints": {"keep": 2, "afterSuccess": "keep"}}
    contract = lab.contract("lora", MODEL, TRAIN, training=training)
    for step in (3, 6, 9):
        run_until(lab, contract, step, monkeypatch)
        Uploader(lab.checkpoints(contract), lab.layout(contract), keep=2).run(lambda seconds: True)
    assert steps_stored(lab, contract) == [9, 6]
    names = [name for name in lab.published(contract) if name.startswith("checkpoints/00000009-")]
    assert files_stored(lab, contract, 9) == sorted(COURSE | LORA)
    (optimizer,) = [name for name in names if name.endswith("optimizer.pt")]
    key = f"{contract.output_uri.removeprefix('s3://out/')}/{contract.run_id}/{optimizer}"
    lab.server.put("out", key, bytes(len(lab.fetch(contract, optimizer))))
    result = lab.run(contract)
    assert result.record is not None
    assert result.record.metrics is not None
    assert result.record.metrics.resumed_from_step == 6
    kept = [name for name in lab.published(contract) if name.startswith("checkpoints/00000006-")]
    sizes = [len(lab.fetch(contract, name)) for name in kept if not name.endswith("/checkpoint.json")]
    assert result.record.metrics.checkpoint_bytes == sum(sizes)
    assert steps_stored(lab, contract) == [9, 6], "afterSuccess keep"


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_are_kept_as_the_request_says(lab: Lab, keep: int) -> None:
    training = {"epochs": 1000.0, "loggingSteps": 1, "checkpoints": {"everySteps": 5, "keep": keep}}
    contract = lab.contract("lora", MODEL, TRAIN, training=training)
    run = lab.start(contract)
    for _ in range(4):
        run.await_line("event=checkpoint_stored")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[0] == 75
    assert len(steps_stored(lab, contract)) == keep


def test_a_checkpoint_of_other_data_is_none_of_this_run(lab: Lab, monkeypatch: pytest.MonkeyPatch, stop: None) -> None:
    uri = lab.put_rows("moving.jsonl", tiny.rows()[0])
    contract = lab.contract("lora", MODEL, uri, training=STEPS)
    run_until(lab, contract, 6, monkeypatch)
    Uploader(lab.checkpoints(contract), lab.layout(contract), keep=2).run(lambda seconds: True)
    assert steps_stored(lab, contract) == [6]
    lab.put_rows("moving.jsonl", tiny.rows()[1])
    run_until(lab, contract, 3, monkeypatch)
    Uploader(lab.checkpoints(contract), lab.layout(contract), keep=2).run(lambda seconds: True)
    assert steps_stored(lab, contract) == [3]
    assert not [name for name in lab.published(contract) if "/00000006-" in name], "or it would count as the newest"


def test_a_published_run_leaves_no_parts_of_uploads_behind(lab: Lab) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 1})
    key = f"{contract.output_uri.removeprefix('s3://out/')}/{contract.run_id}/checkpoints/00000007-killed/optimizer.pt"
    client = lab.server.client()
    upload = client.create_multipart_upload(Bucket="out", Key=key)
    client.upload_part(Bucket="out", Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"half")
    # What lies below the run's folder is its own: it goes on.
    lab.server.put("out", f"{key.split('/checkpoints')[0]}/run.json", json.dumps(contract.to_wire()).encode())
    result = lab.run(contract)
    assert result.exit_code == 0, result.record
    assert "Uploads" not in client.list_multipart_uploads(Bucket="out")


def test_what_is_not_complete_is_no_checkpoint(lab: Lab, monkeypatch: pytest.MonkeyPatch, stop: None) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, training=STEPS)
    run_until(lab, contract, 3, monkeypatch)
    store = lab.checkpoints(contract)
    Uploader(store, lab.layout(contract), keep=2).run(lambda seconds: True)
    folder = f"{contract.output_uri}/{contract.run_id}/checkpoints".removeprefix("s3://out/")
    (name,) = {key.removeprefix(folder + "/").split("/")[0] for key in lab.server.keys("out") if folder in key}
    marker = json.loads(lab.fetch(contract, f"checkpoints/{name}/checkpoint.json"))
    lab.server.put("out", f"{folder}/00000005-unmarked/optimizer.pt", b"half")
    lab.server.put("out", f"{folder}/00000006-unreadable/checkpoint.json", b"{")
    lab.server.put("out", f"{folder}/00000007-bare/checkpoint.json", json.dumps(marker).encode())
    lab.server.put("out", f"{folder}/00000002-old/optimizer.pt", b"half")
    assert steps_stored(lab, contract) == [3]
    store.prune(1)
    left = {key.removeprefix(folder + "/").split("/")[0] for key in lab.server.keys("out") if folder in key}
    assert left == {name, "00000005-unmarked", "00000006-unreadable", "00000007-bare"}, "who saves it may be at it"
