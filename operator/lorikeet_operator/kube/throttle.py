"""A token bucket: the operator's own limit on what it asks of the API server."""

import asyncio
from collections.abc import Awaitable, Callable


class TokenBucket:
    """Lets `burst` requests through at once and `rate` a second in the long run, in order of arrival."""

    def __init__(
        self,
        rate: float,
        burst: int,
        now: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._now = now or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._tokens = float(burst)
        self._at: float | None = None

    async def take(self) -> None:
        """Return when one more request may be sent."""
        now = self._now()
        if self._at is not None:
            self._tokens = min(float(self._burst), self._tokens + (now - self._at) * self._rate)
        self._at = now
        # The count may go below zero: each waiter has taken its token already and sleeps off its own share.
        self._tokens -= 1
        if self._tokens < 0:
            await self._sleep(-self._tokens / self._rate)
