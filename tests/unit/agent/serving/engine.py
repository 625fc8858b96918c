"""An engine that speaks vLLM's endpoints for adapters over real HTTP, and does not compute."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from lorikeet_agent.serving.engine_http import EngineHttp
from lorikeet_engines import Answer
from tests.s3 import free_port

LOCAL = "127.0.0.1"


@dataclass
class FakeEngine:
    """What it serves is lost when it is stopped."""

    base: str = "base-12345678"
    port: int = field(default_factory=free_port)
    static: tuple[str, ...] = ()
    """What it is started with, beside the base."""
    served: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Endpoint and adapter of what changes it or makes it answer."""
    folders: dict[str, set[str]] = field(default_factory=dict)
    """The files that lay in an adapter's folder when it was loaded."""
    refused: dict[str, str] = field(default_factory=dict)
    """What it says of adapters that it does not load."""
    running: int = 0
    """Requests in flight, as its metrics say."""
    unknown_status: int = 404
    """How unloading an adapter that it does not know is answered."""
    broken: set[str] = field(default_factory=set)
    """Adapters that it loads and cannot answer for."""
    may_list: asyncio.Event = field(default_factory=asyncio.Event)
    """While this is not set, listing hangs."""
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    """While this is not set, loading hangs."""
    asked: int = 0
    """How often it was asked what it serves."""
    _runner: web.AppRunner | None = None

    def count(self, endpoint: str, served: str) -> int:
        return self.calls.count((endpoint, served))

    async def start(self) -> None:
        self.served = [self.base, *self.static]
        self.may_list.set()
        self.may_load.set()
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOCAL, self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, _: web.Request) -> web.Response:
        self.asked += 1
        await self.may_list.wait()
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.served]})

    async def _load(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name, folder = asked["lora_name"], Path(asked["lora_path"])
        self.calls.append(("load", name))
        await self.may_load.wait()
        if name in self.served:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").is_file():
            return _error(404, f"No adapter found for '{folder}'")
        if name in self.refused:
            return _error(400, self.refused[name])
        self.folders[name] = set(os.listdir(folder))  # noqa: PTH208 - of a fake, which may wait
        self.served.append(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if name not in self.served:
            return _error(self.unknown_status, f"The lora adapter '{name}' cannot be found.")
        self.served.remove(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: web.Request) -> web.Response:
        name = (await request.json())["model"]
        self.calls.append(("complete", name))
        if name in self.broken:
            return _error(500, "EngineCore encountered an issue.")
        if name not in self.served:
            return _error(404, f"The model `{name}` does not exist.")
        return web.json_response({"choices": [{"text": "!"}]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=metrics(self.running, 0))


def metrics(running: int, waiting: int) -> str:
    return "".join(
        f"# HELP vllm:num_requests_{which} Number.\n# TYPE vllm:num_requests_{which} gauge\n"
        f'vllm:num_requests_{which}{{engine="0",model_name="base"}} {count:.1f}\n'
        for which, count in (("running", running), ("waiting", waiting))
    )


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "BadRequestError", "code": status}}, status=status)


@dataclass
class Recorder:
    """Remembers what was answered."""

    http: Callable[..., Any]
    answers: list[Answer] = field(default_factory=list)

    async def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        answer: Answer = await self.http(method, path, body)
        self.answers.append(answer)
        return answer


@asynccontextmanager
async def engine_running(**changes: Any) -> AsyncIterator[tuple[FakeEngine, Recorder]]:
    """Run an engine; yield it with the way to it."""
    engine = FakeEngine(**changes)
    await engine.start()
    async with aiohttp.ClientSession(trust_env=False) as session:
        try:
            yield engine, Recorder(EngineHttp(session, engine.port))
        finally:
            with contextlib.suppress(OSError):
                await engine.stop()
