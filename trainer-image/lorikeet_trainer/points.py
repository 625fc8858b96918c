"""What trackers are told: points of the run's curves, left by the first rank in a file, read beside it.

A file, so that no step ever waits for a tracker. An attempt that goes on from a checkpoint leaves the whole curve up to
it once more: what a tracker has lost is made up for.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import IO

from lorikeet_api.base import Model
from lorikeet_run import log
from lorikeet_trainer.state import LossPoint, PacePoint


class Point(Model):
    """Figures of one step, by their names in `metrics.json`."""

    step: int
    """Optimiser steps made."""
    time: float
    """When, in seconds since 1970. An evaluation has the time of the step that was logged before it."""
    values: dict[str, float]
    """The figures."""


def points_of(curve: Sequence[LossPoint], pace: Sequence[PacePoint]) -> list[Point]:
    """Return points of a run's curve, in their order; `pace` is of the same steps, with the one before if there is."""
    made, at = [], {point.step: point for point in pace}
    when = pace[0].time if pace else time()
    for point in curve:
        values = {name: value for name, value in point.to_wire().items() if isinstance(value, float)}
        beside = at.get(point.step) if point.loss is not None else None
        if beside is not None:
            when = beside.time
            values |= {"tokensPerSecond": beside.tokens_per_second, "memoryBytes": float(beside.memory_bytes)}
        made.append(Point(step=point.step, time=when, values=values | point.figures))
    return made


class Feed:
    """Writes points where trackers read them. A disk without room costs the trackers, not the run."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written = 0
        self._file: IO[str] | None = None

    def write(self, curve: Sequence[LossPoint], pace: Sequence[PacePoint]) -> None:
        """Write what was added to the run's curve and pace since the last call."""
        if self._path is None or self._written == len(curve):
            return
        added = curve[self._written :]
        fresh, self._written = points_of(added, pace[-len(added) - 1 :]), len(curve)
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8")
            self._file.writelines(json.dumps(point.to_wire()) + "\n" for point in fresh)
            self._file.flush()
        except OSError as error:
            log.event("tracking", level=logging.WARNING, message=f"trackers are told no more: {error}")
            self._path = None


class Reader:
    """Reads what a `Feed` writes, while it writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._half = ""

    def fresh(self) -> list[Point]:
        """Return the points that were written since the last call."""
        if self._file is None:
            if not self._path.exists():
                return []
            self._file = self._path.open(encoding="utf-8")
        *lines, self._half = (self._half + self._file.read()).split("\n")
        return [Point.model_validate_json(line) for line in lines]
