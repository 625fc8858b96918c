"""The names of all metrics that there are, asked of those who tell them; vLLM's are a list, since it needs a model."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

from lorikeet_agent.routing import endpoint
from lorikeet_agent.serving import server
from lorikeet_operator import app, metrics
from lorikeet_operator.kinds import MODELDEPLOYMENT
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.serving.router import Route, Variant
from lorikeet_operator.settings import Settings
from lorikeet_operator.watched import FINETUNEJOBS
from tests.unit.serving.envoy import Engine, eventually, router_before

_VLLM = Path(__file__).with_name("vllm.prom")
_NOBODY: Any = None
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}


async def all_metrics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names of the metrics of operator, agents, router and engine."""
    engine, router = await _of_agents()
    texts = [_of_operator(monkeypatch), engine, router, await _of_envoy(folder), _VLLM.read_text(encoding="utf-8")]
    return {name for text in texts for name in _names(text)}


def _names(text: str) -> list[str]:
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert types, text
    return [name + suffix for name, kind in types for suffix in _SUFFIXES.get(kind, ("",))]


def _of_operator(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what an operator says: its own counters, and the gauges that it registers when it starts."""
    cache, registry = Cache(), CollectorRegistry()
    cache.register(FINETUNEJOBS.kind, FINETUNEJOBS.index)
    cache.register(MODELDEPLOYMENT)
    monkeypatch.setattr(metrics, "REGISTRY", registry)
    app.controllers(Kube(cache, _NOBODY, _NOBODY, _NOBODY), Settings(agent_image="agent:1"), None)
    return (generate_latest(REGISTRY) + generate_latest(registry)).decode()


async def _of_agents() -> tuple[str, str]:
    """Return what the agents beside an engine and beside a router say."""
    holder: Any = SimpleNamespace(engine=SimpleNamespace(answers=True), adapters=list)
    leader: Any = SimpleNamespace(settled=True, rejected=0, state=lambda draining: SimpleNamespace(served=[]))
    serving = server.app(holder, _NOBODY, _NOBODY, _NOBODY, "secret")
    return await _told(serving), await _told(endpoint.app(leader, _NOBODY, "secret"))


async def _told(application: web.Application) -> str:
    async with TestClient(TestServer(application)) as client:
        return await (await client.get("/metrics")).text()


async def _of_envoy(folder: Path) -> str:
    """Return what the router says once it has led a request to an engine that tells of tokens."""

    async def answers(request: web.Request, body: bytes) -> web.StreamResponse:
        return web.json_response({"usage": {"prompt_tokens": 3, "completion_tokens": 5}})

    text = ""
    engine = Engine({"chat-1"}, behaves=answers)
    async with router_before(engine, [Route("chat", [Variant("a", "chat-1", 1)])], folder) as router:
        await router.until("chat")

        async def tells_of_it() -> bool:
            nonlocal text
            async with router.session.get(f"{router.status}/metrics") as answer:
                text = await answer.text()
            return "first_byte_ms" in text and "completion_tokens" in text

        await eventually(tells_of_it)  # once the request is logged, and times every few seconds
    return text
