"""The micro batch of a run that asks for none: whether it is to be found, and what is made of what `probe` measured.

The supervisor's half, without torch.
"""

import logging
import shutil
from typing import Final

from pydantic import ValidationError

from lorikeet_api.batch import USUAL, largest_divisor
from lorikeet_api.contract import EXIT_DONE, RunContract
from lorikeet_run import log
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_trainer.state import Layout, Measured, Prepared, StageResult

LARGEST: Final = 16
"""The largest micro batch that is chosen. Each is padded to its longest example, so larger ones compute more for
nothing, and of so many examples a GPU has enough to do at once."""
ROOM: Final = 0.9
"""Share of the memory that is filled: batches of other lengths leave gaps that nothing fits into."""


def is_to_be_found(contract: RunContract, layout: Layout) -> bool:
    """Whether `probe` is to run: where nobody asked for a micro batch and no checkpoint has one. Raises RunError."""
    if not Hyperparameters.of(contract).tries_micro_batch:
        return False
    return Prepared.read(layout.prepared).fitting is None


def fitting(share: int, measured: Measured) -> int:
    """Return the largest micro batch for which there is room, by what those of one example and of two have taken.

    Memory grows by the same for each example; where it does not grow the usual micro batch is as good as any. One of
    two that was not measured did not fit; one of one always counts, since it was made.

    Args:
        share: examples of an optimiser step on one rank, which it divides.
        measured: with the peak of a micro batch of one, at least.
    """
    one, two = measured.peaks[1], measured.peaks.get(2)
    if two is None:
        return 1
    left, more = ROOM * measured.limit - one, two - one
    most = 1 + int(left // more) if more > 0 else USUAL
    return largest_divisor(share, max(1, min(LARGEST, most)))


def settle(contract: RunContract, layout: Layout, probed: StageResult, seconds: float) -> StageResult:
    """Have training use the micro batch that all ranks have room for; return how the run goes on after `probe`.

    It ends where not even one example fits. Where `probe` failed for another reason training goes on with what is
    usual, and tells by itself if that concerns it, too.
    """
    ranks = [_read(layout, rank) for rank in range(contract.ranks)]
    shutil.rmtree(layout.probe, ignore_errors=True)
    measured = [each for each in ranks if each is not None]
    is_full = probed.record is not None and probed.record.reason == "OutOfMemory"
    found = None
    if len(measured) == contract.ranks and (is_full or probed.record is None):
        hyper = Hyperparameters.of(contract)
        found = min(fitting(hyper.accumulation * hyper.micro_batch_size, each) for each in measured)
        fullest = max(measured, key=lambda each: each.peaks[1] / each.limit)
        log.event(
            "micro_batch",
            size=found,
            one=fullest.peaks[1],
            two=fullest.peaks.get(2),
            limit=fullest.limit,
            seconds=seconds,
        )
    elif is_full:
        return probed
    elif probed.record is not None:
        told = f"what is usual is used: {probed.record.message}"
        log.event("micro_batch", level=logging.WARNING, reason=probed.record.reason, message=told, seconds=seconds)
    prepared = Prepared.read(layout.prepared)
    prepared.model_copy(update={"fitting": found, "probe_seconds": seconds}).write(layout.prepared)
    return StageResult(exit_code=EXIT_DONE)


def _read(layout: Layout, rank: int) -> Measured | None:
    """Return what a rank has measured, if it came so far."""
    try:
        return Measured.read(layout.measured(rank))
    except (OSError, ValidationError):
        return None
