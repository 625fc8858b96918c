"""`lorikeet run`: the same YAML and the same trainer as in a cluster, on this machine.

The trainer is a process of its own, as in a pod: what it logs becomes lines for people here. A stop reaches it as
SIGTERM: it saves a checkpoint to the output, and the same command goes on from there.
"""

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Final, TextIO

from pydantic import ValidationError

from lorikeet_api.contract import EXIT_INTERNAL, EXIT_PREEMPTED, RunContract, RunRecord
from lorikeet_api.defaults import unusual
from lorikeet_cli import figures
from lorikeet_cli.problem import Problem
from lorikeet_cli.request import Machine, add_arguments, contract_of, the_job
from lorikeet_cli.terminal import Line, bar, progress
from lorikeet_run import log
from lorikeet_storage import find_run, run_place

_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    does = "Run a FineTuneJob on this machine, without a cluster."
    parser = commands.add_parser("run", help=does, description=does)
    add_arguments(parser)
    parser.add_argument("--output", metavar="DIR|s3://…", help="where the result goes; absent: where the job says")
    parser.add_argument(
        "--work", metavar="DIR", type=Path,
        help="for model, data and what is on the way; absent: lorikeet/ in the user's cache",
    )  # fmt: skip
    parser.set_defaults(command=run)


def run(given: argparse.Namespace) -> int:
    """Run the job and return the trainer's exit code. Raises Problem and StorageError."""
    contract = contract_of(*the_job(given), Machine.of(given))
    if find_spec("lorikeet_trainer") is None or find_spec("torch") is None:
        raise Problem("the trainer is not installed here: pip install '.[trainer]' in a checkout of Lorikeet")
    if (begun := find_run(contract)) is not None:
        # Templates print it: a run that goes on tomorrow goes on as what it was.
        contract = contract.model_copy(update={"date": begun.date})
    print(f"run {contract.run_id} of {contract.name}")
    for warning in unusual(contract.method, contract.objective.name, contract.training):
        print(f"warning: {warning}")
    with _folder(given.work or _cache(), contract.run_id) as work:
        code, record = _train(contract, work)
        _tell(record, code, contract, work)
    return code


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lorikeet")


@dataclass(frozen=True)
class _Work:
    """The folder of one run; log, contract and record outlive it."""

    root: Path
    lock: int
    """File descriptor of the lock: who has it open is at this run."""

    @property
    def log(self) -> Path:
        return self.root / "trainer.log"

    @property
    def trainer(self) -> Path:
        """What is a pod's scratch volume: empty at the beginning."""
        return self.root / "work"

    @property
    def record(self) -> Path:
        return self.root / "record.json"


@contextmanager
def _folder(top: Path, run_id: str) -> Iterator[_Work]:
    """Have the run's folder to ourselves. Raises Problem if another process is at this run."""
    root = top.expanduser().absolute() / run_id
    with _lock(root) as lock:
        work = _Work(root, lock.fileno())
        shutil.rmtree(work.trainer, ignore_errors=True)
        work.record.unlink(missing_ok=True)
        work.trainer.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work.trainer, ignore_errors=True)


def _lock(root: Path) -> TextIO:
    """Make the folder and return its lock, taken."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / "lock").open("w", encoding="utf-8")
    except OSError as error:
        raise Problem(f"{root} cannot be used ({error.strerror}): name another folder by --work") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Problem(f"another `lorikeet run` is at this very run, in {root}: wait for it") from None
    return lock


def _train(contract: RunContract, work: _Work) -> tuple[int, RunRecord]:
    """Run the trainer to its end; return its exit code and record."""
    path = work.root / "contract.json"
    path.write_text(json.dumps(contract.to_wire(), ensure_ascii=False, indent=1), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "lorikeet_trainer.supervisor", "--contract", str(path)]
    command += ["--work", str(work.trainer), "--termination-log", str(work.record)]
    with (
        work.log.open("w", encoding="utf-8") as kept,
        _stoppable() as stop,
        # A session of its own: Ctrl-C is to reach it once, from us. It holds the lock, too: it may outlive us.
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=kept,
            text=True,
            start_new_session=True,
            pass_fds=(work.lock,),
        ) as process,
    ):
        stop.reach(process)
        assert process.stdout is not None  # noqa: S101 - for the type checker; PIPE was asked for
        try:
            show(process.stdout, kept)
        except BaseException:
            process.terminate()  # nobody listens any more, as where our output went into `head`
            raise
    try:
        return process.returncode, RunRecord.model_validate_json(work.record.read_bytes())
    except (OSError, ValidationError) as error:
        raise Problem(f"the trainer ended without a record: look into {work.log}", EXIT_INTERNAL) from error


class _Stop:
    """Passes a request to stop on to the trainer, also one that came before the trainer did."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._asked = False

    def reach(self, process: "subprocess.Popen[str]") -> None:
        """Have requests reach this process."""
        self._process = process
        if self._asked:
            process.terminate()

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        del number, frame
        self._asked = True
        if self._process is not None:
            self._process.terminate()
        # Not by print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping: a step that is under way is finished and saved\n")


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    # What is ignored stays so: that is how `nohup` and a shell's `&` ask for it.
    heeded = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop.ask) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(lines: Iterable[str], kept: TextIO, line: Line | None = None) -> None:
    """Turn the trainer's log into lines for people; it is kept as it is, too."""
    shown = _Shown(line or Line())
    for text in lines:
        kept.write(text)
        kept.flush()
        shown.take(log.parse(text))
    shown.line.close()


@dataclass
class _Shown:
    """What a user sees of a run."""

    line: Line
    _first: tuple[float, int] | None = None
    """When the first step of this attempt was logged (monotonic clock), and which."""

    def take(self, told: dict[str, str]) -> None:
        """Show one line of the log, if it is news for a user."""
        match told:
            case {"event": "step", "step": step, "steps": steps, "loss": loss}:
                self._step(int(step), int(steps), loss)
            case {"event": "check", "what": "data", "uri": uri, "rows": rows}:
                self.line.say(f"data      {uri}: {rows} rows")
            case {"event": "fetch", "what": "model", "uri": uri}:
                self.line.say(f"model     {uri}")
            case {"event": "resume", "step": step}:
                self.line.say(f"resume    goes on from the checkpoint of step {step}")
            case {"event": "examples", "train": train, "held_out": held_out, "dropped": dropped}:
                self.line.say(f"examples  {train} to train on, {held_out} held out, {dropped} dropped")
            case {"event": "model", "method": method, "device": device, "trained_parameters": trained}:
                self.line.say(f"method    {method} on {device}, {int(trained):,} parameters trained")
            case {"event": "eval", "step": step, "reward": reward}:
                self.line.say(f"eval      step {step}: reward {reward}")
            case {"event": "eval", "step": step, "eval_loss": loss}:
                self.line.say(f"eval      step {step}: loss {loss}")
            case {"event": "sign", "message": message}:
                self.line.say(f"sign      {message}")
            case {"event": "early_stop", "step": step, "steps": steps}:
                self.line.say(f"end       early, after step {step} of {steps}: the held-out loss falls no longer")
            case {"event": "stall", "step": step}:
                self.line.say(f"stall     no step is made after step {step}: the log has the stacks of all threads")
            case {"event": "tracking", "tracker": tracker, "run": where}:
                self.line.say(f"tracker   {tracker}: {where}")
            case {"event": "tracking", "level": "warning", "message": message}:
                self.line.say(f"warning   {message}")
            case {"event": "wait", "message": message}:
                self.line.say(f"waiting   {message}")

    def _step(self, step: int, steps: int, loss: str) -> None:
        now = monotonic()
        if self._first is None:
            self._first = now, step
        began, first = self._first
        left = (now - began) / (step - first) * (steps - step) if step > first else None
        self.line.show(f"{bar(100 * step // max(1, steps))}  {progress(step, steps, loss, left)}")


def _tell(record: RunRecord, code: int, contract: RunContract, work: _Work) -> None:
    """Say how the run has ended."""
    if record.artifacts is None:
        print(f"{record.reason}: {record.message}", file=sys.stderr)
        if code == EXIT_PREEMPTED:
            print("run the same command again to go on", file=sys.stderr)
        elif code == EXIT_INTERNAL:
            print(f"its log is {work.log}", file=sys.stderr)
        return
    if record.reason == "Adopted":
        print("the result of this very request is there already; nothing was trained")
        print(f"a request is known by its URIs: to train on what the files hold now, remove {run_place(contract)}")
    for each in figures.lines(record.metrics) if record.metrics is not None else ():
        print(each)
    what = "adapter" if contract.method.full is None else "model"
    print(f"published {run_place(contract)}/{what}, revision {record.artifacts.revision}")
