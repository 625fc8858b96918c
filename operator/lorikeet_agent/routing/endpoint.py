"""What the agent beside a router answers over HTTP."""

import hmac

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorikeet_agent.routing.drain import Drain
from lorikeet_agent.routing.leader import Leader
from lorikeet_api.serving import DRAIN_HEADER


class _Metrics(Collector):
    def __init__(self, leader: Leader) -> None:
        self._leader = leader

    def collect(self) -> list[Metric]:
        settled = GaugeMetricFamily("lorikeet_router_settled", "Whether requests are led as it is wanted")
        settled.add_metric([], self._leader.settled)
        clusters = GaugeMetricFamily("lorikeet_router_clusters", "Clusters, those of older routes included")
        clusters.add_metric([], len(self._leader.state(draining=False).served))
        rejected = CounterMetricFamily("lorikeet_router_rejected_total", "Versions of a file that Envoy has refused")
        rejected.add_metric([], self._leader.rejected)
        return [settled, clusters, rejected]


def app(leader: Leader, drain: Drain, secret: str) -> web.Application:
    """Return `/healthz`, `/state`, `/metrics` and `/drain`, which needs the secret in DRAIN_HEADER."""
    registry = CollectorRegistry()
    registry.register(_Metrics(leader))

    async def on_healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n") if leader.ready else web.Response(text="nothing wanted yet\n", status=503)

    async def on_state(_: web.Request) -> web.Response:
        return web.json_response(leader.state(drain.running).to_wire())

    async def on_metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def on_drain(request: web.Request) -> web.Response:
        given = request.headers.get(DRAIN_HEADER, "").encode(errors="surrogateescape")
        if not hmac.compare_digest(given, secret.encode()):
            return web.Response(text="only the kubelet may drain\n", status=403)
        await drain.run()
        return web.Response(text="drained\n")

    found = web.Application()
    found.router.add_get("/healthz", on_healthz)
    found.router.add_get("/state", on_state)
    found.router.add_get("/metrics", on_metrics)
    found.router.add_get("/drain", on_drain, allow_head=False)
    return found
