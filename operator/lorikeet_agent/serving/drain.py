"""Lets an engine end what it has begun before it is stopped."""

import asyncio
import time
from collections.abc import Callable

from lorikeet_agent.serving.engine_http import EngineWatch
from lorikeet_agent.serving.settings import Settings
from lorikeet_agent.sidecar import until_idle
from lorikeet_engines import Engine, Http
from lorikeet_run import log


class Drain:
    """What the kubelet waits for before it stops the engine."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        http: Http,
        watch: EngineWatch,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._http = http
        self._watch = watch
        self._now = now
        self._running = 0
        self._ended: float | None = None

    @property
    def draining(self) -> bool:
        """Return whether the engine is about to be stopped.

        It is until another one answers: the kubelet also drains an engine that it starts again by itself.
        """
        if self._running or self._ended is None:
            return self._running > 0
        return not (self._watch.answers and self._watch.since > self._ended)

    async def run(self) -> None:
        """Wait until no request is in flight, the time is over, or the engine hangs or is gone."""
        self._running += 1
        seconds, look_seconds = self._settings.contract.drain_seconds, self._settings.idle_seconds
        log.event("drain", seconds=seconds)
        try:
            await asyncio.sleep(self._settings.notice_seconds)
            ended = await until_idle("the engine", self._is_idle, seconds, look_seconds, self._now)
            log.event("drained", message=ended)
        finally:
            self._running -= 1
            self._ended = self._now()

    async def _is_idle(self) -> bool:
        answer = await self._http("GET", self._engine.metrics_path)
        try:
            return answer.status == 200 and self._engine.in_flight(answer.text) == 0
        except ValueError:  # cut off, or no metrics
            return False
