"""What the agent beside an engine answers over HTTP."""

from aiohttp import web
from prometheus_client import CollectorRegistry

from lorikeet_agent import sidecar
from lorikeet_agent.serving.drain import Drain
from lorikeet_agent.serving.holder import Holder
from lorikeet_agent.serving.metrics import Metrics
from lorikeet_api.serving import AgentState
from lorikeet_engines import Engine, Http

_ENGINE_METRICS = "text/plain; version=0.0.4; charset=utf-8"


def app(holder: Holder, drain: Drain, engine: Engine, http: Http, secret: str) -> web.Application:
    """Return what probes, routers, the operator, Prometheus and the kubelet ask for; `/drain` needs the secret."""
    registry = CollectorRegistry()
    registry.register(Metrics(holder))

    def say(holds: bool, yes: str, no: str) -> web.Response:
        return web.Response(text=f"{yes if holds else no}\n", status=200 if holds else 503)

    async def on_served(request: web.Request) -> web.Response:
        return say(not drain.draining and holder.serves(request.match_info["name"]), "served", "not served")

    async def on_readyz(_: web.Request) -> web.Response:
        return say(not drain.draining and holder.ready, "ready", "not ready")

    async def on_healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def on_state(_: web.Request) -> web.Response:
        state = AgentState(
            wanted=holder.wanted,
            engine=holder.engine.answers,
            draining=drain.draining,
            adapters=[adapter.told() for adapter in holder.adapters()],
        )
        return web.json_response(state.to_wire())

    async def on_engine_metrics(_: web.Request) -> web.Response:
        try:
            answer = await http("GET", engine.metrics_path)
        except OSError as error:
            return web.Response(text=f"{error}\n", status=502)
        if answer.status != 200:
            return web.Response(text=f"the engine answers {answer.status}\n", status=502)
        return web.Response(body=answer.text.encode(), headers={"Content-Type": _ENGINE_METRICS})

    found = web.Application()
    found.router.add_get("/served/{name}", on_served)
    found.router.add_get("/readyz", on_readyz)
    found.router.add_get("/healthz", on_healthz)
    found.router.add_get("/state", on_state)
    found.router.add_get("/metrics", sidecar.metrics(registry))
    found.router.add_get("/engine/metrics", on_engine_metrics)
    found.router.add_get("/drain", sidecar.drain(drain, secret), allow_head=False)
    return found
