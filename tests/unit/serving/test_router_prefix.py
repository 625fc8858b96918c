"""Where it is asked for, requests that begin alike go to one engine, which has their beginning in its prefix cache."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from lorikeet_operator.serving.router import Balancing, Route, Variant
from tests.unit.serving.envoy import CHAT, Engine, Router, eventually, router_before

A, B = "sql-11111111", "dpo-22222222"
SUPPORT = Route("support", [Variant("a", A, 1), Variant("b", B, 1)])
PREFIX = "x-lorikeet-prefix"


@asynccontextmanager
async def router_of(folder: Path, engines: Sequence[Engine], balancing: Balancing) -> AsyncIterator[Router]:
    async with router_before(engines, [SUPPORT], folder, balancing=balancing) as router:
        for served in (A, B):
            await router.until_healthy(served, len(engines))
        yield router


def engines_of(count: int) -> list[Engine]:
    return [Engine({A, B}) for _ in range(count)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hashed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Router, list[Engine]]]:
    """A router that goes by the prompt, for tests that leave it as it is."""
    engines = engines_of(2)
    async with router_of(tmp_path_factory.mktemp("router"), engines, "PrefixHash") as router:
        yield router, engines


pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def engine_of(
    found: tuple[Router, list[Engine]], asked: dict[str, Any], path: str = CHAT, variant: str = "a", **headers: str
) -> int:
    """Ask; return which of the engines has answered."""
    router, engines = found
    for engine in engines:
        engine.seen.clear()
    body = json.dumps({**asked, "model": "support"}).encode()
    status, _, _ = await router.send(body, path, x_lorikeet_variant=variant, **headers)
    assert status == 200
    return next(at for at, engine in enumerate(engines) if engine.seen)


Found = tuple[Router, list[Engine]]


@pytest.mark.parametrize(
    ("path", "key"), [(CHAT, "messages"), ("/v1/completions", "prompt"), ("/v1/embeddings", "input")]
)
async def test_a_prompt_is_always_asked_of_the_same_engine_and_prompts_of_all(
    hashed: Found, path: str, key: str
) -> None:
    engines = set()
    for number in range(24):
        asked = {key: f"prompt {number}"}
        first = await engine_of(hashed, asked, path)
        assert [await engine_of(hashed, asked | {"temperature": at}, path) for at in range(4)] == [first] * 4
        engines.add(first)
    assert engines == {0, 1}


async def test_what_comes_after_its_beginning_does_not_count(hashed: Found) -> None:
    for number in range(24):
        beginning = f"{number} " * 600
        first = await engine_of(hashed, chat(beginning + "one end"))
        assert await engine_of(hashed, chat(beginning + "another end", max_tokens=9)) == first


async def test_each_variant_has_its_own_choice(hashed: Found) -> None:
    """Else one engine would have the long system prompt of all of them."""
    pairs = [[await engine_of(hashed, chat(f"{number}"), variant=each) for each in "ab"] for number in range(24)]
    assert any(first != second for first, second in pairs)


async def test_no_client_chooses_the_engine(hashed: Found) -> None:
    forged = [await engine_of(hashed, chat("hello"), x_lorikeet_prefix=f"{number}") for number in range(24)]
    assert len(set(forged)) == 1


async def test_a_request_without_a_prompt_is_led_like_any_other(hashed: Found) -> None:
    assert {await engine_of(hashed, {}, x_lorikeet_prefix="1") for _ in range(30)} == {0, 1}


async def test_an_engine_that_is_much_busier_than_the_others_is_spared(tmp_path: Path) -> None:
    held, count = asyncio.Event(), 16

    async def behaves(request: web.Request, body: bytes) -> web.StreamResponse:
        await held.wait()
        return web.Response(body=body)

    engines = engines_of(2)
    for engine in engines:
        engine.behaves = behaves
    async with router_of(tmp_path, engines, "PrefixHash") as router:
        body = json.dumps({**chat("one prompt of many"), "model": "support"}).encode()

        async def ask() -> int:
            return (await router.send(body, x_lorikeet_variant="a"))[0]

        asking = []
        for number in range(1, count + 1):
            asking.append(asyncio.create_task(ask()))

            async def has_arrived(number: int = number) -> bool:
                return sum(len(engine.seen) for engine in engines) == number

            await eventually(has_arrived)
        busiest = max(len(engine.seen) for engine in engines)
        held.set()
        assert set(await asyncio.gather(*asking)) == {200}
    # A quarter above the mean, and what rounding up adds.
    assert count / 2 < busiest <= count / 2 * 1.25 + 1


async def test_where_it_is_not_asked_for_a_prompt_has_no_engine(tmp_path: Path) -> None:
    engines = engines_of(2)
    async with router_of(tmp_path, engines, "LeastRequest") as router:
        for _ in range(30):
            assert (await router.send(b'{"model": "support", "messages": []}', x_lorikeet_prefix="1"))[0] == 200
    assert all(engine.seen for engine in engines)
    assert PREFIX not in {name.lower() for engine in engines for each in engine.seen for name in each["headers"]}


async def test_it_is_switched_on_while_requests_are_answered(tmp_path: Path) -> None:
    engines = engines_of(2)
    async with router_of(tmp_path, engines, "LeastRequest") as router:
        found, asked = (router, engines), chat("hello")
        router.balancing = "PrefixHash"
        router.lead([SUPPORT])

        async def is_on() -> bool:
            return len({await engine_of(found, asked) for _ in range(24)}) == 1

        await eventually(is_on)
        assert len({await engine_of(found, chat(f"{number}")) for number in range(24)}) == 2
