"""Lets a router end what it has begun before it is stopped."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import aiohttp

from lorikeet_agent.routing.envoy import Envoy, Gone
from lorikeet_agent.routing.settings import Settings
from lorikeet_run import log

_LOOK_SECONDS: Final = 0.25


class Drain:
    """What the kubelet waits for before it stops Envoy, which itself would end at once."""

    def __init__(self, settings: Settings, envoy: Envoy, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._envoy = envoy
        self._now = now
        self._running = 0

    @property
    def running(self) -> bool:
        """Return whether Envoy is about to be stopped."""
        return self._running > 0

    async def run(self) -> None:
        """Wait until no request is in flight, the time is over, or Envoy is gone."""
        self._running += 1
        log.event("drain", seconds=self._settings.drain_seconds)
        try:
            await asyncio.sleep(self._settings.grace_seconds)
            ended = await self._until_idle()
            log.event("drained", message=ended)
        finally:
            self._running -= 1

    async def _until_idle(self) -> str:
        """Return what has ended the wait."""
        end, told, idle = self._now() + self._settings.drain_seconds, False, 0
        while self._now() < end:
            try:
                if not told:
                    await self._envoy.close_connections()
                    told = True
                idle = idle + 1 if await self._envoy.is_idle() else 0
            except Gone:
                return "Envoy is gone"
            except (aiohttp.ClientError, TimeoutError):
                idle = 0
            if idle == 2:
                return "no request is in flight"
            await asyncio.sleep(_LOOK_SECONDS)
        return "the time is over"
