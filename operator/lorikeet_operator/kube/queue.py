"""A queue of keys: each is worked on by one worker at a time, however often it is added."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from lorikeet_operator import logs, metrics
from lorikeet_operator.kube.errors import ApiError, Conflict
from lorikeet_operator.kube.kinds import Key

_log = logging.getLogger(__name__)

_FIRST_BACKOFF = 2.0
_LAST_BACKOFF = 300.0
_STUCK_SLACK = 30.0
"""How long a cancelled reconcile may take to end before it counts as stuck."""


@dataclass(frozen=True)
class Requeue:
    """Look at the key again after so many seconds, unless something happens before."""

    after: float


class Timer(Protocol):
    """A call that has been put off."""

    def cancel(self) -> None:
        """Do not make it."""


class Clock(Protocol):
    """Time, as the queue sees it."""

    def now(self) -> float:
        """Return seconds that only go forward."""

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call back after so many seconds."""


class LoopClock:
    """The running event loop's time."""

    def now(self) -> float:
        """Return seconds that only go forward."""
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call back after so many seconds."""
        return asyncio.get_running_loop().call_later(seconds, callback)


Reconcile: TypeAlias = Callable[[Key], Awaitable[Requeue | None]]


@dataclass
class _Run:
    task: asyncio.Task[None]
    since: float


class KeyedQueue:
    """Runs `reconcile` for the keys that are added.

    A key that waits is not added twice; one that is being worked on runs again afterwards. After an error a key
    comes back after a jittered pause that doubles from about one second to five minutes. A reconcile that takes
    longer than `timeout` is cancelled, which counts as an error.
    """

    def __init__(
        self,
        name: str,
        reconcile: Reconcile,
        *,
        workers: int = 16,
        timeout: float = 120.0,
        clock: Clock | None = None,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.name = name
        self._reconcile = reconcile
        self._workers = workers
        self._timeout = timeout
        self._clock = clock or LoopClock()
        self._jitter = jitter
        self._waiting: dict[Key, float] = {}
        self._running: dict[Key, _Run] = {}
        self._again: dict[Key, float] = {}
        self._timers: dict[Key, tuple[float, Timer]] = {}
        self._failures: dict[Key, int] = {}
        self._open = False
        metrics.QUEUE_DEPTH.labels(name).set_function(lambda: self.depth)
        metrics.QUEUE_OLDEST.labels(name).set_function(self.oldest_age)
        metrics.QUEUE_IN_FLIGHT.labels(name).set_function(lambda: self.in_flight)

    @property
    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._waiting) + len(self._again)

    @property
    def in_flight(self) -> int:
        """Reconciles that run."""
        return len(self._running)

    def oldest_age(self) -> float:
        """Return how long the oldest waiting key has waited."""
        added = [*self._waiting.values(), *self._again.values()]
        return self._clock.now() - min(added) if added else 0.0

    def stuck(self) -> list[Key]:
        """Return the keys whose reconcile was cancelled for its length and did not end even so."""
        limit = self._clock.now() - self._timeout - _STUCK_SLACK
        return [key for key, run in self._running.items() if run.since < limit]

    def add(self, key: Key) -> None:
        """Have the key reconciled as soon as a worker is free."""
        if key in self._running:
            self._again.setdefault(key, self._clock.now())
        else:
            self._waiting.setdefault(key, self._clock.now())
            self._pump()

    def add_after(self, key: Key, seconds: float) -> None:
        """Have the key reconciled after some time; the earliest of several wins."""
        due = self._clock.now() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer[0] <= due:
            return
        self._drop_timer(key)
        self._timers[key] = (due, self._clock.call_later(seconds, lambda: self._ring(key)))

    def start(self) -> None:
        """Begin to work; until then keys are only collected."""
        self._open = True
        self._pump()

    async def stop(self, grace: float) -> bool:
        """Start nothing more, let running reconciles end within `grace` seconds, then cancel them.

        Return whether all of them ended by themselves.
        """
        self._open = False
        for key in list(self._timers):
            self._drop_timer(key)
        tasks = [run.task for run in self._running.values()]
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=grace)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
        return not late

    def _ring(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _drop_timer(self, key: Key) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer[1].cancel()

    def _pump(self) -> None:
        while self._open and self._waiting and len(self._running) < self._workers:
            key = next(iter(self._waiting))
            del self._waiting[key]
            # A reconcile decides afresh when it wants to be called again.
            self._drop_timer(key)
            task = asyncio.create_task(self._work(key), name=f"{self.name} {key}")
            self._running[key] = _Run(task, self._clock.now())

    async def _work(self, key: Key) -> None:
        started = self._clock.now()
        try:
            with logs.about(self.name, key):
                result = await self._attempt(key)
            metrics.RECONCILES.labels(self.name, result).inc()
        finally:
            metrics.RECONCILE_SECONDS.labels(self.name).observe(self._clock.now() - started)
            del self._running[key]
            added = self._again.pop(key, None)
            if added is not None:
                self._waiting.setdefault(key, added)
            self._pump()

    async def _attempt(self, key: Key) -> str:
        """Reconcile once, arrange for the next time, and return the outcome for the metric."""
        task = asyncio.ensure_future(self._reconcile(key))
        late = self._clock.call_later(self._timeout, task.cancel)
        try:
            requeue = await task
        except asyncio.CancelledError:
            if not task.cancelled() or (current := asyncio.current_task()) is None or current.cancelling():
                task.cancel()
                raise
            self._retry(key)
            _log.error("reconcile took longer than %.0f s and was cancelled", self._timeout)
            return "stuck"
        except Conflict as error:
            self._retry(key)
            _log.info("the object moved on while it was reconciled: %s", error)
            return "conflict"
        except ApiError as error:
            self._retry(key, error.retry_after or 0.0)
            _log.warning("reconcile failed and will be tried again: %s", error)
            return "error"
        except Exception:  # noqa: BLE001  whatever it was, it is logged and the key comes back
            self._retry(key)
            _log.exception("reconcile failed and will be tried again")
            return "error"
        finally:
            late.cancel()
        self._failures.pop(key, None)
        if requeue is None:
            return "ok"
        self.add_after(key, requeue.after)
        return "requeue"

    def _retry(self, key: Key, at_least: float = 0.0) -> None:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = min(_LAST_BACKOFF, _FIRST_BACKOFF * 2.0 ** min(failures, 20))
        self.add_after(key, max(at_least, pause * self._jitter(0.5, 1.0)))
