"""What the agents beside engines and beside routers answer in the same way."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from lorikeet_api.serving import DRAIN_HEADER

Handler = Callable[[web.Request], Awaitable[web.Response]]


def metrics(registry: CollectorRegistry) -> Handler:
    """Return the handler of `/metrics`."""

    async def on_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return on_metrics


class Drains(Protocol):
    """What has requests in flight."""

    async def run(self) -> None:
        """Wait until they have ended."""


def drain(of: Drains, secret: str) -> Handler:
    """Return the handler of `/drain`: it answers once requests have ended, to whom knows the secret of DRAIN_HEADER."""

    async def on_drain(request: web.Request) -> web.Response:
        given = request.headers.get(DRAIN_HEADER, "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, secret.encode()):
            return web.Response(text="only the kubelet may drain\n", status=403)
        await of.run()
        return web.Response(text="drained\n")

    return on_drain
