"""An engine that fails before it has answered is replaced by another one, once; what has begun is never asked again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from lorikeet_operator.serving.router import Limits, Route, Variant
from tests.unit.serving.envoy import CHAT, Behaviour, Engine, Router, eventually, router_before

SERVED = "smollm2"
BASE = Route("assistant", [Variant("base", SERVED, 1)])
PLAIN, STREAM = b'{"model": "assistant"}', b'{"model": "assistant", "stream": true}'


@asynccontextmanager
async def router_of(folder: Path, engines: list[Engine]) -> AsyncIterator[Router]:
    """Run a router before engines that are all healthy."""
    async with router_before(engines, [BASE], folder) as router:
        await router.until_healthy(SERVED, len(engines))
        yield router


def engines_of(count: int, behaviour: Callable[[Engine], Behaviour] | None = None) -> list[Engine]:
    """Return engines that serve the model; `behaviour` says how each of them answers."""
    engines = [Engine({SERVED}) for _ in range(count)]
    for engine in engines:
        engine.behaves = behaviour(engine) if behaviour else None
        engine.first_half_arrived.set()
    return engines


def asked(engines: list[Engine]) -> list[int]:
    """Return how often each engine was asked, the most asked one first."""
    return sorted((len(engine.seen) for engine in engines), reverse=True)


async def hang_up(request: web.Request, _: bytes) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def fail(*_: object) -> web.StreamResponse:
    return web.json_response({"error": {"message": "too long"}}, status=503)


def one_dies(after: bytes = b"") -> Callable[[Engine], Behaviour]:
    """Return how engines behave of which the one that is asked first dies, after it has answered so much."""
    dead: list[Engine] = []

    def behaviour(engine: Engine) -> Behaviour:
        async def behaves(request: web.Request, body: bytes) -> web.StreamResponse:
            if dead:
                return web.Response(body=body)
            dead.append(engine)
            answer = web.StreamResponse()
            if after:
                await answer.prepare(request)
                await answer.write(after)
            await engine.die()
            return answer

        return behaves

    return behaviour


@pytest.mark.parametrize("body", [PLAIN, STREAM], ids=["plain", "stream"])
async def test_a_request_whose_engine_dies_before_a_byte_came_is_answered_by_another_one(
    tmp_path: Path, body: bytes
) -> None:
    engines = engines_of(2, one_dies())
    async with router_of(tmp_path, engines) as router:
        status, answer, _ = await router.send(body)
        assert (status, answer["model"]) == (200, SERVED)
        labels = f'{{model="assistant",variant="base",revision="{SERVED}",status="200",flags="-"}}'

        async def is_counted_as_good() -> bool:
            return (await router.metrics()).get(f"envoy_lorikeet_requests{labels}") == 1

        await eventually(is_counted_as_good)
    assert asked(engines) == [1, 1]


async def test_so_is_one_with_a_large_body(tmp_path: Path) -> None:
    engines = engines_of(2, one_dies())
    body = b'{"model": "assistant", "x": "%s"}' % (b"y" * (Limits().max_request_bytes - 100))
    async with router_of(tmp_path, engines) as router:
        assert (await router.send(body))[0] == 200
    assert asked(engines) == [1, 1]
    first, second = (engine.seen[0]["body"] for engine in engines)
    assert first == second == body.replace(b'"assistant"', f'"{SERVED}"'.encode())


async def test_a_stream_that_has_begun_is_cut_and_not_asked_for_again(tmp_path: Path) -> None:
    engines = engines_of(2, one_dies(after=b"data: first\n\n"))
    async with (
        router_of(tmp_path, engines) as router,
        router.session.post(router.url + CHAT, data=STREAM) as answer,
    ):
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    assert asked(engines) == [1, 0]


async def test_a_request_that_brings_engines_down_is_tried_twice_and_no_more(tmp_path: Path) -> None:
    engines = engines_of(3, lambda _: hang_up)
    async with router_of(tmp_path, engines) as router:
        status, answer, headers = await router.send(PLAIN)
    assert (status, answer["error"]["code"]) == (503, "unavailable")
    assert headers["Retry-After"]
    assert asked(engines) == [1, 1, 0]


@pytest.mark.parametrize(("behaviour", "expected"), [(hang_up, [1, 1, 0]), (fail, [1, 0, 0])])
async def test_nor_more_often_if_its_client_says_so(tmp_path: Path, behaviour: Behaviour, expected: list[int]) -> None:
    engines = engines_of(3, lambda _: behaviour)
    async with router_of(tmp_path, engines) as router:
        await router.send(PLAIN, x_envoy_retry_on="5xx,reset", x_envoy_max_retries="9")
    assert asked(engines) == expected


async def test_an_answer_that_is_an_error_is_the_answer(tmp_path: Path) -> None:
    engines = engines_of(2, lambda _: fail)
    async with router_of(tmp_path, engines) as router:
        status, answer, _ = await router.send(PLAIN)
    assert (status, answer["error"]["message"]) == (503, "too long")
    assert asked(engines) == [1, 0]


async def test_no_request_fails_while_an_engine_is_gone_that_still_counts_as_healthy(tmp_path: Path) -> None:
    engines = engines_of(2)
    async with router_of(tmp_path, engines) as router:
        await engines[0].die()
        assert {(await router.send(PLAIN))[0] for _ in range(100)} == {200}
        assert await router.stat(f"cluster.{SERVED}.upstream_rq_retry") > 0
    assert not engines[0].seen


async def test_an_engine_gets_requests_as_soon_as_its_name_says_so_and_none_after(tmp_path: Path) -> None:
    engines = engines_of(2)
    async with router_of(tmp_path, engines) as router:
        gone = router.addresses.pop()
        await router.until_healthy(SERVED, 1)
        for _ in range(20):
            await router.send(PLAIN)
        assert asked(engines) == [20, 0]
        router.addresses.append(gone)
        await router.until_healthy(SERVED, 2)

        async def is_asked() -> bool:
            await router.send(PLAIN)
            return asked(engines)[1] > 0

        await eventually(is_asked)


async def test_an_engine_learns_that_its_client_is_gone(tmp_path: Path) -> None:
    """It computes for nobody then."""
    gone = asyncio.Event()

    async def for_ever(request: web.Request, _: bytes) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        try:
            while True:
                await answer.write(b"data: more\n\n")
                await asyncio.sleep(0.01)
        except ConnectionError:
            gone.set()
            raise

    engines = engines_of(2, lambda _: for_ever)
    async with router_of(tmp_path, engines) as router:
        async with router.session.post(router.url + CHAT, data=STREAM) as answer:
            assert await answer.content.readany()
        async with asyncio.timeout(10):
            await gone.wait()
    assert asked(engines) == [1, 0]


async def test_an_answer_may_come_late_but_not_later_than_the_limit(tmp_path: Path) -> None:
    """Envoy's own limit is fifteen seconds."""

    async def late(request: web.Request, body: bytes) -> web.StreamResponse:
        await asyncio.sleep(60 if b"never" in body else 16)
        return web.Response(body=body)

    engine = engines_of(1, lambda _: late)[0]
    async with router_before(engine, [BASE], tmp_path, Limits(idle_timeout_seconds=17)) as router:
        await router.until_healthy(SERVED, 1)
        (found, _, _), (ended, answer, _) = await asyncio.gather(
            router.send(PLAIN), router.send(b'{"model": "assistant", "x": "never"}')
        )
    assert found == 200
    assert (ended, answer["error"]["code"]) == (504, "timeout")
    assert len(engine.seen) == 2
