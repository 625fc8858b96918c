"""Lets a router end what it has begun before it is stopped."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import aiohttp

from lorikeet_agent.routing.envoy import Envoy, Gone
from lorikeet_agent.routing.settings import Settings
from lorikeet_agent.sidecar import until_idle
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
        """Wait until no request is in flight, the time is over, or Envoy hangs or is gone."""
        self._running += 1
        seconds = self._settings.drain_seconds
        log.event("drain", seconds=seconds)
        try:
            await asyncio.sleep(self._settings.grace_seconds)
            ended = await until_idle("Envoy", self._is_idle, seconds, _LOOK_SECONDS, self._now)
            log.event("drained", message=ended)
        finally:
            self._running -= 1

    async def _is_idle(self) -> bool:
        try:
            # Each time: it may not have heard it yet, and to hear it again changes nothing.
            await self._envoy.close_connections()
            return await self._envoy.is_idle()
        except Gone as error:
            raise ConnectionError from error
        except aiohttp.ClientError:
            return False
