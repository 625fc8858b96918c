"""Brings one tracker up to date, from a thread: one that is slow or away holds up neither the others nor the run."""

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from lorikeet_api.contract import Metrics
from lorikeet_api.tracking import TrackerName
from lorikeet_run import log
from lorikeet_run.report import TrackerState
from lorikeet_trainer.points import Point
from lorikeet_trainer.state import Ending
from lorikeet_trainer.trackers import Lost, Tracker
from lorikeet_trainer.trackers.keys import in_short

_BATCH: Final = 100
"""Points that are told at once."""
_FIRST_PAUSE: Final = 2.0
_LONGEST_PAUSE: Final = 60.0
"""Seconds between two tries with a tracker that is away."""
_LAST_TRIES: Final = 2
"""Failures in a row after which a tracker is given up once the run waits for it."""
_FIXES: Final[dict[TrackerName, str]] = {
    name: f"; correct tracking.{name} or its Secret, or let the run reach its server" for name in ("mlflow", "wandb")
}
"""What to do about a tracker with a server."""


class Teller:
    """What one tracker is to know and what it knows. Nothing that it does raises."""

    def __init__(self, name: TrackerName, make: Callable[[], Tracker]) -> None:
        self._name: TrackerName = name
        self._make = make
        self._tracker: Tracker | None = None
        self._changed = threading.Condition()
        self._points: list[Point] = []
        self._metrics: Metrics | None = None
        self._ending: Ending | None = None
        self._where: str | None = None
        self._told = 0
        self._is_finished = self._is_ended = self._is_given_up = False
        self._failures = 0
        self._error: str | None = None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def add(self, points: Sequence[Point]) -> None:
        """Have points told."""
        with self._changed:
            self._points.extend(points)
            self._changed.notify_all()

    def finish(self, metrics: Metrics) -> None:
        """Have the run's figures told, after all points."""
        with self._changed:
            self._metrics = metrics
            self._changed.notify_all()

    def end(self, ending: Ending) -> None:
        """Have told how the attempt has ended, after all else."""
        with self._changed:
            self._ending = ending
            self._changed.notify_all()

    def settle(self, deadline: float) -> bool:
        """Wait until the tracker knows everything or is given up, until `deadline` (monotonic clock) at most; return
        whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._next() is None, max(0.0, deadline - monotonic()))

    @property
    def state(self) -> TrackerState:
        """How the tracker stands."""
        with self._changed:
            return TrackerState(name=self._name, run=self._where, warning=self._warning())

    def _warning(self) -> str | None:
        if self._is_ended or (self._is_finished and self._ending is None):
            return None
        why = self._error or "it does not answer"
        if self._where is None:
            return f"{self._name} was not reached and has nothing of the run: {why}{_FIXES.get(self._name, '')}"
        if (left := len(self._points) - self._told) > 0:
            return f"{self._name} lacks {left} of the {len(self._points)} points of metrics.json: {why}"
        if self._metrics is not None and not self._is_finished:
            return f"{self._name} has not got the run's figures, or its files: {why}"
        return f"{self._name} was not told how the run has ended: {why}"

    def _next(self) -> Callable[[], None] | None:
        """Return what is to be done next; None where nothing is."""
        if self._is_given_up:
            return None
        if self._tracker is None:
            return self._begin
        if self._told < len(self._points):
            return self._tell
        if self._metrics is not None and not self._is_finished:
            return self._finish
        if self._ending is not None and not self._is_ended:
            return self._end
        return None

    def _begin(self) -> None:
        tracker = self._make()
        where = tracker.begin()
        self._tracker, self._where = tracker, where
        log.event("tracking", tracker=self._name, run=where)

    def _tell(self) -> None:
        assert self._tracker is not None  # noqa: S101 - see `_next`
        batch = self._points[self._told : self._told + _BATCH]
        self._tracker.tell(batch)
        self._told += len(batch)

    def _finish(self) -> None:
        assert self._tracker is not None  # noqa: S101 - see `_next`
        assert self._metrics is not None  # noqa: S101
        self._tracker.finish(self._metrics)
        self._is_finished = True

    def _end(self) -> None:
        assert self._tracker is not None  # noqa: S101 - see `_next`
        assert self._ending is not None  # noqa: S101
        self._tracker.end(self._ending)
        self._is_ended = True

    def _run(self) -> None:
        while not self._is_given_up:
            with self._changed:
                self._changed.wait_for(lambda: self._next() is not None)
                work = self._next()
            assert work is not None  # noqa: S101 - it was waited for
            try:
                work()
            except Exception as error:  # noqa: BLE001 - each library has its own, and none may cost more than a warning
                self._fail(error)
            else:
                self._failures, self._error = 0, None
            with self._changed:
                self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        """Tell the first failure in a row, and wait before the next try: not where the run waits for it."""
        with self._changed:
            self._failures += 1
            self._error = in_short(error)
            if self._failures == 1:
                message = f"{self._name} does not take it, training goes on without: {self._error}"
                log.event("tracking", level=logging.WARNING, tracker=self._name, message=message)
            if isinstance(error, Lost) or (self._is_waited_for() and self._failures >= _LAST_TRIES):
                self._is_given_up = True
                return
            pause = min(_FIRST_PAUSE * 2.0 ** (self._failures - 1), _LONGEST_PAUSE)
            self._changed.wait_for(self._is_waited_for, pause)

    def _is_waited_for(self) -> bool:
        return self._metrics is not None or self._ending is not None
