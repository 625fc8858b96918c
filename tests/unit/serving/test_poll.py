"""What agents are asked, over HTTP: whatever a pod answers, or does not, the others are heard."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import aiohttp
import pytest

from lorikeet_api.serving import AgentState, RouterState
from lorikeet_operator.kube.kinds import Object
from lorikeet_operator.serving import poll
from lorikeet_operator.serving.poll import Poller
from tests.unit.serving.world import Agents, agents, loaded

HERE, THERE, NOWHERE = "127.0.0.2", "127.0.0.3", "127.0.0.100"
AGENT = AgentState(wanted="w", engine=True, draining=False, adapters=[loaded("sql-11111111")])
GOING_BY = datetime(2026, 11, 23, 10, tzinfo=UTC)
ROUTER = RouterState(wanted="w", routed="w", served=["sql-11111111"])


def pod(name: str, address: str = HERE, *, ready: bool = True, going: bool = False, phase: str = "Running") -> Object:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    metadata = {"name": name, "uid": f"uid-{name}"} | ({"deletionTimestamp": "2026-11-23T10:00:00Z"} if going else {})
    return {"metadata": metadata, "status": {"phase": phase, "podIP": address, "conditions": conditions}}


@pytest.fixture
async def answering() -> AsyncIterator[Agents]:
    async with agents() as made:
        made.states = {HERE: AGENT, THERE: AGENT}
        yield made


async def test_each_engine_says_how_it_stands(answering: Agents) -> None:
    heard = await Poller(answering.port).engines([pod("a"), pod("b", NOWHERE, ready=False), pod("c", THERE)])
    assert [(each.name, each.ready, each.state) for each in heard] == [
        ("a", True, AGENT),
        ("b", False, None),
        ("c", True, AGENT),
    ]


async def test_engines_that_are_going_are_not_asked(answering: Agents) -> None:
    pods = [pod("a", going=True), pod("b", phase="Failed"), pod("c", phase="Succeeded"), pod("d", "")]
    assert [(each.name, each.state) for each in await Poller(answering.port).engines(pods)] == [("d", None)]


async def test_routers_that_are_going_are_asked_and_are_not_ready(answering: Agents) -> None:
    answering.states[HERE] = ROUTER
    pods = [pod("a"), pod("b", going=True), pod("c", phase="Failed")]
    heard = await Poller(answering.port, now=lambda: GOING_BY).routers(pods)
    assert [(each.name, each.ready, each.state) for each in heard] == [("a", True, ROUTER), ("b", False, ROUTER)]


async def test_a_router_that_never_ran_or_should_be_gone_by_now_is_not_waited_for(answering: Agents) -> None:
    answering.states[HERE] = ROUTER
    pods = [pod("a"), pod("lost", going=True), pod("pending", "")]
    heard = await Poller(answering.port, now=lambda: GOING_BY + timedelta(seconds=1)).routers(pods)
    assert [each.name for each in heard] == ["a"]


async def test_it_is_told_for_how_long_a_ready_pod_has_not_answered(answering: Agents) -> None:
    now = GOING_BY
    poller = Poller(answering.port, now=lambda: now)
    silent, starting = pod("silent", NOWHERE), pod("starting", NOWHERE, ready=False)

    async def heard() -> list[float]:
        engines = await poller.engines([pod("a"), silent, starting])
        routers = await poller.routers([pod("r", NOWHERE)])
        return [*(each.silent for each in engines), *(each.silent for each in routers)]

    assert await heard() == [0, 0, 0, 0]
    now += timedelta(seconds=20)
    assert await heard() == [0, 20, 0, 20]
    silent["status"]["podIP"] = THERE
    assert await heard() == [0, 0, 0, 20]
    silent["status"]["podIP"] = NOWHERE
    now += timedelta(seconds=20)
    assert await heard() == [0, 0, 0, 40], "it is counted anew from an answer on"


async def test_nobody_is_asked_where_there_is_nobody() -> None:
    assert (await Poller(1).engines([]), await Poller(1).routers([])) == ([], [])


@asynccontextmanager
async def talking(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[int]:
    """Serve one that answers any request by `talk` and hangs up; return the port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await talk(reader, writer)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, HERE, 0) as server:
        yield server.sockets[0].getsockname()[1]


SOUND = AGENT.model_dump_json().encode()


def says(status: str, body: bytes = SOUND, *headers: str, length: int | None = None) -> Any:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    return talk


async def hangs(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side hangs up


async def never_ends(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def test_an_answer_is_taken_from_anybody() -> None:
    async with talking(says("200 OK")) as port:
        (heard,) = await Poller(port).engines([pod("a")])
    assert heard.state == AGENT


@pytest.mark.parametrize(
    "talk",
    [
        says("503 Service Unavailable"),
        says("200 OK", b'{"of": "tomorrow"}'),
        says("200 OK", b"<html>"),
        says("200 OK", length=100_000),
        says("200 OK", gzip.compress(SOUND), "Content-Encoding: gzip"),
        says("not HTTP"),
        hangs,
        never_ends,
    ],
    ids=["503", "another shape", "no JSON", "broken off", "packed", "no HTTP", "hangs", "never ends"],
)
async def test_an_odd_answer_is_none(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll, "SECONDS", 0.5)
    async with talking(talk) as port:
        (heard,) = await Poller(port).engines([pod("a")])
    assert (heard.ready, heard.state) == (True, None)


async def test_who_talks_without_end_is_not_listened_to_until_the_time_is_up() -> None:
    async with talking(never_ends) as port:
        begun = time.monotonic()
        await Poller(port).engines([pod("a")])
        assert time.monotonic() - begun < poll.SECONDS / 2


async def test_nobody_sends_us_elsewhere(answering: Agents) -> None:
    async with talking(says("302 Found", b"", f"Location: http://{THERE}:{answering.port}/state")) as port:
        (heard,) = await Poller(port).engines([pod("a")])
    assert heard.state is None


async def test_who_answers_is_heard_beside_any_number_of_silent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll, "SECONDS", 2.0)
    silent = 300
    order = count()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (hangs if next(order) < silent else says("200 OK"))(reader, writer)

    async with talking(talk) as port:
        heard = await Poller(port).engines([pod(str(number)) for number in range(silent + 1)])
    assert [each.state for each in heard].count(AGENT) == 1


async def test_an_address_of_ipv6_is_written_as_urls_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(_: object, url: str, **more: object) -> None:
        asked.append(url)
        raise OSError

    monkeypatch.setattr(aiohttp.ClientSession, "get", get)
    await Poller(9000).engines([pod("a", "fd00::1"), pod("b", "10.0.0.1")])
    assert asked == ["http://[fd00::1]:9000/state", "http://10.0.0.1:9000/state"]
