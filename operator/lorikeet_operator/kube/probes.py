"""/healthz, /readyz and /metrics."""

from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lorikeet_operator.kube import serve as http
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.queue import KeyedQueue

_MISSED_LISTS = 3.0


def unhealthy(cache: Cache, queues: Sequence[KeyedQueue], relist_interval: float) -> list[str]:
    """Return why the process should be restarted; nothing if it should not."""
    limit = _MISSED_LISTS * relist_interval
    reasons = [
        f"{kind} was last listed {cache.relist_age(kind):.0f} s ago"
        for kind in cache.kinds
        if cache.relist_age(kind) > limit
    ]
    return reasons + [f"the reconcile of {key} in {queue.name} hangs" for queue in queues for key in queue.stuck()]


def unready(cache: Cache) -> list[str]:
    """Return what is not there yet; nothing if the operator knows the cluster."""
    return [f"{kind} is not listed yet" for kind in cache.kinds if not cache.synced(kind)]


async def serve(
    host: str, port: int, healthz: Callable[[], list[str]], readyz: Callable[[], list[str]]
) -> web.AppRunner:
    """Begin to answer on a port; the caller cleans the runner up."""

    def answer(reasons: list[str]) -> web.Response:
        return web.Response(text="\n".join(reasons or ["ok"]) + "\n", status=503 if reasons else 200)

    async def on_healthz(_: web.Request) -> web.Response:
        return answer(healthz())

    async def on_readyz(_: web.Request) -> web.Response:
        return answer(readyz())

    async def on_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", on_healthz), web.get("/readyz", on_readyz), web.get("/metrics", on_metrics)])
    return await http.serve(app, host, port)
