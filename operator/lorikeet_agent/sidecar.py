"""What the agents beside engines and beside routers do in the same way."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from lorikeet_api.serving import DRAIN_HEADER

Handler = Callable[[web.Request], Awaitable[web.Response]]
SILENT_SECONDS: Final = 90.0
"""What has answered nothing for so long hangs, and its requests will not end. One that is only busy answers in between:
many questions fit into it, each of as many seconds as its client waits."""


def metrics(registry: CollectorRegistry) -> Handler:
    """Return the handler of `/metrics`."""

    async def on_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return on_metrics


class Drains(Protocol):
    """What has requests in flight."""

    async def run(self) -> None:
        """Wait until they have ended."""


async def until_idle(
    name: str,
    is_idle: Callable[[], Awaitable[bool]],
    seconds: float,
    look_seconds: float,
    now: Callable[[], float],
) -> str:
    """Wait until nothing is in flight, nothing will end any more, or the time is over; return which of them it was.

    Args:
        name: what is drained.
        is_idle: asks it. Raises TimeoutError if it does not answer, and another OSError if it is gone.
        seconds: how long requests are waited for.
        look_seconds: between two questions.
        now: the clock.
    """
    begun = answered = now()
    idle = 0
    while now() - begun < seconds:
        try:
            idle = idle + 1 if await is_idle() else 0
            answered = now()
        except TimeoutError:
            idle = 0
            if now() - answered >= SILENT_SECONDS:
                return f"{name} has answered nothing for {SILENT_SECONDS:g} s"
        except OSError:
            return f"{name} is gone"
        if idle == 2:
            return "no request is in flight"
        await asyncio.sleep(look_seconds)
    return "the time is over"


def drain(of: Drains, secret: str) -> Handler:
    """Return the handler of `/drain`: it answers once requests have ended, to whom knows the secret of DRAIN_HEADER."""

    async def on_drain(request: web.Request) -> web.Response:
        given = request.headers.get(DRAIN_HEADER, "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, secret.encode()):
            return web.Response(text="only the kubelet may drain\n", status=403)
        await of.run()
        return web.Response(text="drained\n")

    return on_drain
