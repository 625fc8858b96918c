"""A rank that hangs, and ranks that only take their time."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from lorikeet_trainer import lifecycle
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.objectives.sft import Sft
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import StageResult
from lorikeet_trainer.stop import STOP
from lorikeet_trainer.watchdog import LEAST_SECONDS, MEDIANS, Watchdog
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        yield made


class Clocked:
    """A watched rank by a clock that only the test moves."""

    def __init__(self, seconds: float | None = None) -> None:
        self.time = 0.0
        self.dog = Watchdog(seconds, 0, Path("unused"), lambda: self.time)
        self.state = TrainerState(max_steps=100)
        self.control = TrainerControl()

    def wait(self, seconds: float) -> bool:
        """Let time pass; return whether the rank counts as hanging."""
        self.time += seconds
        return self.dog.check() is not None

    def call(self, event: str) -> None:
        getattr(self.dog, event)(None, self.state, self.control)

    def step(self, seconds: float) -> None:
        """Make a step that takes so long."""
        self.call("on_step_begin")
        self.time += seconds
        self.call("on_optimizer_step")
        self.state.global_step += 1
        self.call("on_step_end")


def test_the_first_step_takes_what_it_takes_and_the_second_may_not() -> None:
    rank = Clocked(seconds=60)
    rank.call("on_step_begin")
    assert not rank.wait(10_000)
    rank.step(5)
    assert not rank.wait(59)
    assert rank.wait(1), "waiting for the batch of the next step"
    found = rank.dog.check()
    assert found is not None
    assert (found.reason, found.exit_code, found.record().retryable) == ("Stalled", 70, True)
    assert found.message.startswith("no step was made in 60 s after step 1 (rank 0; a step took 5 s before)")


def test_without_a_limit_it_is_what_steps_take_many_times_over_and_never_little() -> None:
    fast, slow = Clocked(), Clocked()
    for _ in range(40):
        fast.step(0.01)
        slow.step(60.0)
    assert not fast.wait(LEAST_SECONDS - 1)
    assert fast.wait(1)
    assert not slow.wait(MEDIANS * 60 - 1)
    assert slow.wait(1)


def test_a_rank_that_is_told_to_stop_or_has_made_its_last_step_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Clocked(seconds=60)
    rank.step(1)
    assert rank.wait(100)
    monkeypatch.setattr(STOP, "requested", True)
    assert not rank.wait(100)
    monkeypatch.undo()
    rank.state.global_step = rank.state.max_steps - 1
    rank.step(1)
    assert not rank.wait(100)


def test_steps_are_watched_from_the_second_on_evaluations_and_checkpoints_are_not(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    dogs: list[Watchdog] = []
    seen: list[tuple[str, bool]] = []

    def spied(owner: Any, name: str, what: str) -> None:
        real = getattr(owner, name)

        def told(self: Any, *given: Any, **named: Any) -> Any:
            if dogs:
                seen.append((what, dogs[0].watching))
            return real(self, *given, **named)

        monkeypatch.setattr(owner, name, told)

    spied(Guarded, "get_batch_samples", "batch")
    spied(Guarded, "training_step", "step")
    spied(Guarded, "_save_checkpoint", "checkpoint")
    spied(Sft, "evaluate", "evaluation")
    begin = Watchdog.on_train_begin

    def begun(self: Watchdog, *given: Any, **named: Any) -> None:
        dogs.append(self)
        begin(self, *given, **named)

    monkeypatch.setattr(Watchdog, "on_train_begin", begun)
    training = {"maxSteps": 4, "microBatchSize": 8, "evalSteps": 2, "checkpoints": {"everySteps": 3}}
    dataset = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
    assert lab.run(lab.contract("lora", MODEL, TRAIN, training=training, dataset=dataset)).exit_code == 0
    assert seen == [
        *(("batch", False), ("step", False)),
        *(("batch", True), ("step", True), ("evaluation", False)),
        *(("batch", True), ("step", True), ("checkpoint", False)),
        *(("batch", True), ("step", True), ("evaluation", False)),
    ]


HANGS = """
import sys, time
from lorikeet_trainer import loop, stage, watchdog
watchdog.OTHERS_SECONDS = 1.0
made = loop.Guarded.get_batch_samples
def hanging_loader(self, *given):
    if self.state.global_step == 3 and self.accelerator.process_index == 0:
        time.sleep(600)
    return made(self, *given)
loop.Guarded.get_batch_samples = hanging_loader
sys.exit(stage.main())
"""


def test_a_rank_that_hangs_in_loading_and_one_in_the_collective_after_it_end_with_their_stacks(lab: Lab) -> None:
    training = {"epochs": 1000.0, "loggingSteps": 1, "stallTimeoutSeconds": 4}
    contract = lab.contract("lora", MODEL, TRAIN, gpus=2, allow_cpu=True, training=training)
    path, layout = lab.write(contract), lab.layout(contract)
    assert run_stage("prepare", path, layout).exit_code == 0
    arguments = ["train", "--contract", str(path), "--work", str(layout.model.parent), "--rank"]
    port = lifecycle._free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", HANGS, *arguments, str(rank)],
            env=lifecycle.environment("train", rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=200) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [70, 70], told
    for number, ((out, stacks), where) in enumerate(
        zip(told, ("in hanging_loader", "distributed_c10d.py"), strict=True)
    ):
        record = StageResult.read(layout.result("train", number)).record
        assert record is not None
        assert (record.reason, record.retryable) == ("Stalled", True)
        assert f"after step 3 (rank {number};" in record.message
        assert "event=stall" in out
        assert "Thread 0x" in stacks
        assert where in stacks
