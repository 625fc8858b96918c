"""The stages of a run, one after the other, and what their ends mean.

`prepare` (fetch and check; no torch, so a typo costs seconds), `probe` (finds the micro batch, where that is left open)
and `train` (both with one process a rank) and `publish` are processes of their own: a run that is stopped before its
training is complete cannot publish, because that stage is never started, and the ranks are not handed the storage's
credentials.
"""

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Final, Literal

from pydantic import ValidationError

from lorikeet_api.contract import EXIT_DONE, EXIT_PREEMPTED, FINAL_EXIT_CODES, RunContract
from lorikeet_api.signs import SIGN_NAMES
from lorikeet_run import log
from lorikeet_run.errors import (
    RETRYABLE_CODES,
    RunError,
    internal,
    out_of_memory,
    out_of_memory_outside_training,
    preempted,
)
from lorikeet_run.record import read_contract, write_record
from lorikeet_trainer import cgroup
from lorikeet_trainer.fitting import is_to_be_found, settle
from lorikeet_trainer.processes import Children, Command, End
from lorikeet_trainer.progress import Endpoint, Reporter
from lorikeet_trainer.state import Ending, Layout, StageResult, StoredCheckpoint
from lorikeet_trainer.tracking import END_SECONDS, FINISH_SECONDS, STOPPED_SECONDS, Tracking

Stage = Literal["prepare", "probe", "train", "publish"]
STAGES: Final[tuple[Stage, ...]] = ("prepare", "probe", "train", "publish")
IN_RANKS: Final[tuple[Stage, ...]] = ("probe", "train")
"""Those that have a process for each rank."""

AIR_GAP: Final = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""Nothing may be asked of the hub once the model is here: trl reports its start, peft looks the base up."""

_SECRETS: Final = ("AWS_", "HF_TOKEN", "MLFLOW_", "WANDB_")
"""Beginnings of variables that the ranks have no use for."""

_TELL_SECONDS: Final = 10.0
"""How long the final record is told to a progress endpoint that does not answer."""
_TELL_STOPPED_SECONDS: Final = 2.0
"""The same of a run that is asked to stop."""
_END_SECONDS: Final = STOPPED_SECONDS + _TELL_STOPPED_SECONDS + 1.0
"""Kept of the grace period to tell trackers and the progress endpoint of the end, and to write the final record."""
_UPLOAD_SECONDS: Final = 60.0
"""What a checkpoint's upload may take after a failed attempt, before the next one begins, in this job or another."""


@dataclass(frozen=True)
class Options:
    """Where the run finds and leaves its things."""

    contract: Path
    work: Path
    termination_log: Path


def run(options: Options, children: Children) -> int:
    """Run the contract's stages, write the final record and return the exit code."""
    log.set_up()
    reporter, tracking = Reporter(Endpoint.of()), Tracking(children)
    try:
        result = _run_stages(options, children, reporter, tracking)
    except RunError as error:
        result = StageResult(exit_code=error.exit_code, record=error.record())
    except Exception as error:  # noqa: BLE001 - whatever it was, the pod does not end without a record
        failure = internal(error)
        result = StageResult(exit_code=failure.exit_code, record=failure.record())
    record = result.record or RunError("InternalError", "the last stage left no record").record()
    write_record(record, options.termination_log)  # at once, however long trackers take
    record = tracking.end(record, _ending(result.exit_code), END_SECONDS)
    write_record(record, options.termination_log)  # with what they lack
    log.event("end", reason=record.reason, message=record.message, exit_code=result.exit_code)
    # A second way for it: a node that is lost takes the termination message along.
    reporter.end(record, _TELL_STOPPED_SECONDS if children.stopping else _TELL_SECONDS)
    return result.exit_code


def _ending(exit_code: int) -> Ending:
    if exit_code == EXIT_DONE:
        return "published"
    return "stopped" if exit_code == EXIT_PREEMPTED else "failed"


def _run_stages(options: Options, children: Children, reporter: Reporter, tracking: Tracking) -> StageResult:
    contract = read_contract(options.contract)
    children.grace_seconds = max(1.0, contract.grace_period_seconds - _END_SECONDS)
    layout = Layout(options.work)
    # The pod's annotation, from which the file comes, may be changed while it runs.
    options.work.mkdir(parents=True, exist_ok=True)
    layout.contract.write_text(contract.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    options = replace(options, contract=layout.contract)
    result = StageResult(exit_code=EXIT_DONE)
    for stage in STAGES:
        # What is trained to its end is published in what is left of the grace: that is less than to train again.
        if children.stopping and stage != "publish":
            raise preempted(_stored(layout))
        if stage == "probe" and not is_to_be_found(contract, layout):
            continue
        if stage == "train":  # whose first rank tells more
            tracking.start(contract, layout, _tracking_command(options))
        elif stage != "probe":  # which is part of preparing, for who looks on
            reporter.stage(stage)
        began = monotonic()
        result = _run_stage(stage, contract, options, children)
        if stage == "probe":
            result = settle(contract, layout, result, round(monotonic() - began, 3))
        if result.record is not None:
            return result
        if stage == "train":
            tracking.finish(FINISH_SECONDS)
    return result


def _run_stage(stage: Stage, contract: RunContract, options: Options, children: Children) -> StageResult:
    """Run one stage in all its ranks, training with the upload of checkpoints beside it."""
    layout = Layout(options.work)
    ranks = contract.ranks if stage in IN_RANKS else 1
    port = _free_port()
    commands = [_command(stage, rank, ranks, port, options, layout) for rank in range(ranks)]
    if stage == "train":
        children.start_helper(_upload_command(options, children.grace_seconds))
    before = cgroup.oom_kills()
    ends = children.run(commands, even_stopping=stage == "publish")
    after = cgroup.oom_kills()
    killed = before is not None and after is not None and after > before
    results = {rank: _read_result(layout.result(stage, rank)) for rank in range(ranks)}
    try:
        result = judge(stage, ends, results, stopping=children.stopping, oom_killed=killed)
    except RunError as error:
        result = StageResult(exit_code=error.exit_code, record=error.record())
    # What is uploaded now serves only a run that is gone on with.
    goes_on = result.exit_code in RETRYABLE_CODES or (result.record is not None and result.record.reason in SIGN_NAMES)
    children.end_helper(_UPLOAD_SECONDS if goes_on else 0)
    if result.exit_code == EXIT_PREEMPTED:
        raise preempted(_stored(layout))
    return result


def _stored(layout: Layout) -> int | None:
    """Return the step of the newest checkpoint in the store."""
    try:
        return StoredCheckpoint.read(layout.stored).step
    except (OSError, ValidationError):
        return None


def judge(
    stage: Stage, ends: Sequence[End], results: Mapping[int, StageResult | None], *, stopping: bool, oom_killed: bool
) -> StageResult:
    """Return what the ends of a stage's ranks mean for the run.

    `ends` are in the order in which they came, `results` what each rank wrote before it ended, `oom_killed`
    whether the kernel killed a process of the container for memory meanwhile. A finding about request, data or
    memory counts more than the faults that it causes in other ranks; of those the first counts. Raises RunError
    where no rank could say how it ended.
    """
    first = results.get(0)
    if ends and all(end.status == EXIT_DONE for end in ends) and first is not None:
        return first
    if stopping:
        raise preempted(None)
    failed = [end for end in ends if end.status != EXIT_DONE]
    told = [result for end in failed if (result := results.get(end.index)) and result.record is not None]
    told.sort(key=lambda result: result.exit_code not in FINAL_EXIT_CODES)
    if told and told[0].exit_code in FINAL_EXIT_CODES:
        return told[0]
    if oom_killed and any(end.status == -signal.SIGKILL for end in failed):
        raise out_of_memory("the container") if stage in IN_RANKS else out_of_memory_outside_training(stage)
    if told and results.get(failed[0].index) is not None:
        return told[0]
    raise _died(next(iter([*failed, *ends]), None))


def _died(end: End | None) -> RunError:
    if end is None:
        return RunError("InternalError", "the stage ended without a result")
    lines = "\n".join(end.stderr_tail.strip().splitlines()[-12:]) or "(nothing on stderr)"
    if end.status < 0:
        how = f"was killed by {signal.Signals(-end.status).name}"
    else:
        how = f"ended with exit code {end.status}"
    return RunError("InternalError", f"rank {end.index} {how} without a result; its last words:\n{lines}")


def _read_result(path: Path) -> StageResult | None:
    try:
        return StageResult.read(path)
    except (OSError, ValidationError):
        return None


def _command(stage: Stage, rank: int, ranks: int, port: int, options: Options, layout: Layout) -> Command:
    layout.result(stage, rank).unlink(missing_ok=True)
    arguments = [sys.executable, "-P", "-m", "lorikeet_trainer.stage", stage]
    arguments += ["--contract", str(options.contract), "--work", str(options.work), "--rank", str(rank)]
    return Command(arguments, environment(stage, rank, ranks, port))


def _upload_command(options: Options, grace: float) -> Command:
    arguments = [sys.executable, "-P", "-m", "lorikeet_trainer.upload"]
    arguments += ["--contract", str(options.contract), "--work", str(options.work), "--grace", str(grace)]
    return Command(arguments, environment("publish", 0, 1, 0))


def _tracking_command(options: Options) -> Command:
    arguments = [sys.executable, "-P", "-m", "lorikeet_trainer.track"]
    arguments += ["--contract", str(options.contract), "--work", str(options.work)]
    return Command(arguments, environment("publish", 0, 1, 0))


def environment(stage: Stage, rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the environment of a stage's process.

    Threads come from the CPU quota and are shared by the ranks; torch's rendezvous is set where there are
    several; secrets go to the stages that reach storage.
    """
    values = dict(os.environ) | {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # transformers' own callback blocks a step for up to 5 s and tells a wrong end at every stop.
        "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
        "TOKENIZERS_PARALLELISM": "true",
    }
    values.setdefault("OMP_NUM_THREADS", str(max(1, cgroup.cpus() // ranks)))
    values.setdefault("RAYON_NUM_THREADS", values["OMP_NUM_THREADS"])
    if stage != "prepare":
        values |= AIR_GAP
    if stage in IN_RANKS:
        values = {name: value for name, value in values.items() if not name.startswith(_SECRETS)}
    # A machine may have more GPUs than the run asked for, and a process that sees several would spread over them.
    seen = values.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(ranks))))
    values["CUDA_VISIBLE_DEVICES"] = ",".join(seen.split(",")[:ranks])
    if ranks > 1:
        values |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return values


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
