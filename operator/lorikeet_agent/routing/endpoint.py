"""What the agent beside a router answers over HTTP."""

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorikeet_agent import sidecar
from lorikeet_agent.routing.drain import Drain
from lorikeet_agent.routing.leader import Leader


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

    found = web.Application()
    found.router.add_get("/healthz", on_healthz)
    found.router.add_get("/state", on_state)
    found.router.add_get("/metrics", sidecar.metrics(registry))
    found.router.add_get("/drain", sidecar.drain(drain, secret), allow_head=False)
    return found
