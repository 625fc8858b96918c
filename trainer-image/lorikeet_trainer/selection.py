"""Which weights of a run have the lowest loss on the held-out examples, and whether that loss still falls.

The best weights lie in a folder of their own, and in each checkpoint: so whoever goes on from one has them, whatever
else the store has lost.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch.distributed as dist

from lorikeet_api.training import EarlyStopping
from lorikeet_run import log
from lorikeet_trainer.methods import Trainable
from lorikeet_trainer.state import Course, LossPoint

BEST: Final = "best"
"""Folder of the best weights in a checkpoint."""


class EndedEarly(Exception):
    """An attempt that was to go on has nothing to do: the held-out loss no longer falls."""


@dataclass
class Selection:
    """The best weights so far, where they are wanted."""

    trainable: Trainable
    folder: Path
    """Where they lie."""
    is_first: bool
    """Whether this is the first rank, which writes them."""
    is_wanted: bool
    early: EarlyStopping | None
    best: LossPoint | None = None
    """The evaluation that they are of."""

    def take_up(self, course: Course | None, checkpoint: Path) -> None:
        """Begin with the best weights of a checkpoint, if it has any, or with none."""
        if self.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)
        if course is None or not self.is_wanted:
            return
        if course.best_step is None:
            if any(point.eval_loss is not None for point in course.curve):
                log.event("best_unknown", message="the checkpoint has none: those before it are left out")
            return
        self.best = next(
            point for point in course.curve if point.step == course.best_step and point.eval_loss is not None
        )
        if self.is_first:
            (checkpoint / BEST).rename(self.folder)

    def consider(self, point: LossPoint) -> None:
        """Keep the weights as they are now if no evaluation before this one had a loss as low."""
        if not self.is_wanted or (self.best is not None and _loss(point) >= _loss(self.best)):
            return
        self.best = point
        if self.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.is_first or self.trainable.is_sharded:
            self.trainable.save_checkpoint(self.folder)
        if dist.is_initialized():
            dist.barrier()  # else the others wait for the first rank in their next step, which is watched

    def keep(self, checkpoint: Path) -> None:
        """Put the best weights into a checkpoint; they take no room on the disk there."""
        if self.best is not None:
            shutil.copytree(self.folder, checkpoint / BEST, copy_function=os.link)

    def restore(self, step: int) -> int:
        """Give the model the best weights, and return their step; it has those after `step`."""
        if self.best is None or self.best.step == step:
            return step
        self.trainable.load_checkpoint(self.folder)
        return self.best.step

    def has_stalled(self, curve: Iterable[LossPoint]) -> bool:
        """Whether the evaluations so far are to be the last ones."""
        if self.early is None:
            return False
        return stalled([point.eval_loss for point in curve if point.eval_loss is not None], self.early)


def stalled(losses: Iterable[float], early: EarlyStopping) -> bool:
    """Return whether the last `patience` losses were none lower, by more than `min_delta`, than the last that was."""
    lowest, waited = float("inf"), 0
    for loss in losses:
        lowest, waited = (loss, 0) if loss < lowest - early.min_delta else (lowest, waited + 1)
    return waited >= early.patience


def _loss(point: LossPoint) -> float:
    assert point.eval_loss is not None  # noqa: S101 - it is an evaluation's
    return point.eval_loss
