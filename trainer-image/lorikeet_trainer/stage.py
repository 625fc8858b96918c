"""Entry of a stage's process: runs it and leaves a result file, whatever happens."""

import argparse
import gc
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final

from lorikeet_api.contract import EXIT_DONE, RunContract, RunRecord
from lorikeet_run import log
from lorikeet_run.errors import explain
from lorikeet_run.record import read_contract
from lorikeet_trainer.lifecycle import IN_RANKS, STAGES, Stage
from lorikeet_trainer.state import Layout, StageResult
from lorikeet_trainer.stop import STOP

Work = Callable[[RunContract, Layout], RunRecord | None]
"""A stage: returns the run's end, or None if the next stage goes on."""


@contextmanager
def _importing() -> Iterator[None]:
    """Import without looking for garbage: libraries leave none, and to look among all that they make takes a fifth."""
    gc.disable()
    try:
        with log.timed("import"):
            yield
    finally:
        gc.freeze()
        gc.enable()


def _prepare() -> Work:
    from lorikeet_trainer.prepare import prepare

    return prepare


def _probe() -> Work:
    from lorikeet_trainer import device

    def probe(contract: RunContract, layout: Layout) -> None:
        # Where a GPU was asked for and none is there the CPU trains, with what is usual; trl takes seconds to import.
        if device.choose(contract).on_gpu:
            with _importing():
                from lorikeet_trainer.probe import probe

            probe(contract, layout)

    return probe


def _train() -> Work:
    began = monotonic()
    with _importing():
        from lorikeet_trainer.train import train

    return partial(train, imported=round(monotonic() - began, 3))


def _publish() -> Work:
    from lorikeet_trainer.publish import publish

    return publish


# Each stage loads its own libraries alone: torch stays out of the first and the last.
_WORK: Final[dict[Stage, Callable[[], Work]]] = {
    "prepare": _prepare,
    "probe": _probe,
    "train": _train,
    "publish": _publish,
}


def run_stage(stage: Stage, contract_path: Path, layout: Layout) -> StageResult:
    """Run `stage` and return how it ended; no exception leaves this function but those that end Python."""
    try:
        record = _WORK[stage]()(read_contract(contract_path), layout)
        return StageResult(exit_code=EXIT_DONE, record=record)
    except Exception as error:  # noqa: BLE001 - the one place where every failure becomes a record
        failure = explain(error)
        if failure.reason == "InternalError":
            traceback.print_exc()
        return StageResult(exit_code=failure.exit_code, record=failure.record())


def main() -> int:
    """Run one rank of one stage."""
    parser = argparse.ArgumentParser(prog="lorikeet_trainer.stage")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--contract", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=0)
    given = parser.parse_args()
    # The other ranks do the same as the first, and train as probe: one voice is enough, until something is wrong.
    log.set_up(logging.INFO if given.rank == 0 and given.stage != "probe" else logging.WARNING)
    if given.stage == "train":
        STOP.listen()
    if given.stage in IN_RANKS:
        # trl imports trackers where it finds them, for seconds; ours are told from a process of their own.
        sys.modules.update(dict.fromkeys(("mlflow", "wandb")))  # type: ignore[arg-type]
    if given.stage == "publish":
        # What was trained is worth more than a quick end: it has the grace period to be uploaded in.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    layout = Layout(given.work)
    result = run_stage(given.stage, given.contract, layout)
    result.write(layout.result(given.stage, given.rank))
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
