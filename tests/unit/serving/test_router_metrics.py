"""What is told of each variant: requests, their errors by cause, their times, and the tokens that engines tell of."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from lorikeet_operator.serving.router import Limits, Route, Variant
from tests.unit.serving.envoy import CHAT, Engine, Router, eventually, router_before

SQL, DPO, BASE = "sql-11111111", "dpo-22222222", "smollm2"
ROUTES = [
    Route("support", [Variant("a", SQL, 90), Variant("b", DPO, 10)]),
    Route("assistant", [Variant("base", BASE, 1)]),
]
Counted = Mapping[tuple[str, ...], float]


async def counted(router: Router, name: str) -> Counted:
    """Return a counter by its labels' values."""
    found = re.compile(rf"envoy_lorikeet_{name}{{(.*)}}")
    told = await router.metrics()
    return {
        tuple(re.findall(r'"([^"]*)"', match.group(1))): value
        for each, value in told.items()
        if (match := found.fullmatch(each))
    }


async def until_counted(router: Router, name: str, wanted: Counted, before: Counted) -> None:
    """Wait until a counter has risen by so much, and nothing else of it has."""

    async def is_so() -> bool:
        now = await counted(router, name)
        more = {labels: value - before.get(labels, 0) for labels, value in now.items()}
        return {labels: value for labels, value in more.items() if value} == wanted

    await eventually(is_so)


async def logged(router: Router, request_id: str) -> dict[str, Any]:
    """Wait until the access log has the line of a request; return it."""
    found: list[dict[str, Any]] = []

    async def is_there() -> bool:
        lines = (json.loads(line) for line in router.log().splitlines() if line.startswith("{") and line.endswith("}"))
        found[:] = [line for line in lines if line["request_id"] == request_id]
        return bool(found)

    await eventually(is_there)
    return found[0]


def no_errors(router: Router) -> bool:
    return not re.search(r"\[(error|critical)\]", router.log())


async def test_requests_are_counted_by_who_answers_and_how(tmp_path: Path) -> None:
    engine = Engine({SQL, BASE})
    async with router_before(engine, ROUTES, tmp_path) as router:
        await router.until("support", x_lorikeet_variant="a")
        before = await counted(router, "requests")
        for _ in range(3):
            await router.ask("support", x_lorikeet_variant="a")
        await router.ask("support", x_lorikeet_variant="b")
        await router.ask("nobody")
        wanted: Counted = {
            ("support", "a", SQL, "200", "-"): 3.0,
            ("support", "b", DPO, "503", "UH"): 1.0,
            ("", "", "", "404", "-"): 1.0,
        }
        await until_counted(router, "requests", wanted, before)
        assert no_errors(router)


async def test_an_engines_own_error_can_be_told_from_one_of_reaching_it(tmp_path: Path) -> None:
    engine = Engine({BASE})

    async def behaves(request: web.Request, body: bytes) -> web.StreamResponse:
        if b"fail" in body:
            return web.Response(status=500)
        if b"hang up" in body:
            assert request.transport is not None
            request.transport.abort()
        if b"wait" in body:
            await asyncio.Event().wait()
        return web.Response(body=body)

    engine.behaves = behaves
    async with router_before(engine, ROUTES, tmp_path, Limits(idle_timeout_seconds=1)) as router:
        await router.until("assistant")
        before = await counted(router, "requests")
        statuses = [
            (await router.send(b'{"model": "assistant", "x": "%s"}' % x))[0] for x in (b"fail", b"hang up", b"wait")
        ]
        assert statuses == [500, 503, 504]
        engine.loaded.clear()
        await router.until_status(503, "assistant")
        wanted = {("500", "-"), ("503", "URX,UC"), ("504", "SI"), ("503", "UH")}

        async def are_told_apart() -> bool:
            now = await counted(router, "requests")
            more = {labels[3:] for labels, value in now.items() if value != before.get(labels)}
            return more - {("200", "-")} == wanted

        await eventually(are_told_apart)


@pytest.mark.parametrize(
    ("told", "status"), [("headers and a part", "200"), ("headers", "200"), ("nothing", "0")], ids=str
)
async def test_a_client_that_goes_away_is_no_error_of_anybody(tmp_path: Path, told: str, status: str) -> None:
    engine, asked = Engine({BASE}), asyncio.Event()

    async def behaves(request: web.Request, _: bytes) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": EVENTS})
        if "headers" in told:
            await answer.prepare(request)
        if "part" in told:
            await answer.write(b"data: first\n\n")
        asked.set()
        await asyncio.Event().wait()
        return answer

    async with router_before(engine, ROUTES, tmp_path) as router:
        await router.until("assistant")
        before = await counted(router, "requests")
        engine.behaves = behaves
        asking = asyncio.create_task(router.ask("assistant"))
        await asked.wait()
        asking.cancel()
        await until_counted(router, "requests", {("assistant", "base", BASE, status, "DC"): 1.0}, before)
        assert no_errors(router)


async def test_requests_are_timed_to_their_first_byte_and_to_their_last(tmp_path: Path) -> None:
    engine = Engine({BASE})
    engine.first_half_arrived.set()
    async with router_before(engine, ROUTES, tmp_path) as router:
        await router.until("assistant")
        await router.send(b'{"model": "assistant", "stream": true}')

        async def are_timed() -> bool:
            """Say whether the first half came in time, and the whole after a second."""
            told = await router.metrics()
            sums = {name: value for name, value in told.items() if 'model="assistant"' in name and "_sum" in name}
            whole, first = (
                next((value for name, value in sums.items() if what in name), 0.0)
                for what in ("request_ms", "first_byte_ms")
            )
            return whole > 900 > first

        await eventually(are_timed)  # Envoy gathers histograms every five seconds
        assert no_errors(router)


async def test_each_request_is_a_line_of_the_access_log_without_its_body(tmp_path: Path) -> None:
    async with router_before(Engine({BASE}), ROUTES, tmp_path) as router:
        await router.until("assistant")
        await router.send(b'{"model": "assistant", "messages": "a secret"}', x_request_id="mine")
        line = await logged(router, "mine")
        assert (line["model"], line["path"], line["status"]) == ("assistant", CHAT, 200)
        assert "a secret" not in router.log()


@pytest.mark.parametrize(
    ("path", "status", "written"),
    [
        (f"{CHAT}?api_key=hunter2", 200, CHAT),
        ("/nowhere?api_key=hunter2", 404, "/nowhere"),
        ("/v1/a%2fb?api_key=hunter2", 400, "/v1/a/b"),
        ("/v1//models?/?api_key=hunter2", 404, "/v1/models"),
    ],
    ids=["led", "not served", "refused by Envoy", "cleaned by Envoy"],
)
async def test_no_log_has_anything_of_a_query(tmp_path: Path, path: str, status: int, written: str) -> None:
    engine = Engine({BASE})
    async with router_before(engine, ROUTES, tmp_path) as router:
        await router.until("assistant")
        assert (await router.ask("assistant", path, x_request_id="mine"))[0] == status
        assert (await logged(router, "mine"))["path"] == written
        assert "hunter2" not in router.log()
        assert "hunter2" not in str(engine.seen), "the engine would write it into its log"


USAGE = {"prompt_tokens": 31, "total_tokens": 41, "completion_tokens": 10, "prompt_tokens_details": None}
COMPLETION = {
    "id": "1",
    "choices": [{"message": {"content": 'he said "usage": {"prompt_tokens": 7, "completion_tokens": 7}'}}],
    "usage": USAGE,
}
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"


def events(*told: object) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in told) + b"data: [DONE]\n\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def telling(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Router]:
    """A router for tests in which the engine answers with whatever they say."""
    async with router_before(Engine({BASE}), ROUTES, tmp_path_factory.mktemp("router")) as router:
        await router.until("assistant")
        yield router


async def answered(
    router: Router, parts: Sequence[bytes], kind: str = JSON, status: int = 200, path: str = CHAT, encoding: str = ""
) -> bytes:
    """Have the engine answer in these parts; return what the client gets."""
    encoded = {"content-encoding": encoding} if encoding else {}

    async def behaves(request: web.Request, _: bytes) -> web.StreamResponse:
        answer = web.StreamResponse(status=status, headers={"content-type": kind} | encoded)
        await answer.prepare(request)
        for part in parts:
            await answer.write(part)
            await asyncio.sleep(0)
        return answer

    router.engine.behaves = behaves
    async with router.session.post(router.url + path, data=b'{"model": "assistant"}', auto_decompress=False) as found:
        return await found.read()


async def tokens(router: Router) -> tuple[float, float]:
    """Return how many tokens of prompts and of answers were counted."""
    labels = ("assistant", "base", BASE)
    kinds = [await counted(router, f"{kind}_tokens") for kind in ("prompt", "completion")]
    return kinds[0].get(labels, 0), kinds[1].get(labels, 0)


async def until_tokens(router: Router, before: tuple[float, float], prompt: float, completion: float) -> None:
    async def is_so() -> bool:
        return await tokens(router) == (before[0] + prompt, before[1] + completion)

    await eventually(is_so)


shared = pytest.mark.asyncio(loop_scope="module")


@shared
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps(COMPLETION).encode(), JSON),
        (json.dumps(COMPLETION, separators=(",", ":")).encode(), JSON),
        (json.dumps(COMPLETION, indent=2).encode(), JSON),
        (json.dumps({**COMPLETION, "prompt_logprobs": [{"logprob": -1.5}] * 20000}).encode(), JSON),
        (json.dumps({"usage": USAGE} | COMPLETION).encode(), JSON),
        (events({"choices": [], "usage": None}, {"choices": [], "usage": USAGE}), EVENTS),
        (events({"usage": USAGE}, {"choices": [], "usage": None}), EVENTS),
        (events(*({"usage": {"prompt_tokens": 31, "completion_tokens": count}} for count in range(11))), EVENTS),
    ],
    ids=["spaced", "dense", "indented", "much-after", "first", "stream", "stream-null-after", "stream-running"],
)
async def test_tokens_are_counted_where_the_engine_tells_of_them(telling: Router, body: bytes, kind: str) -> None:
    before = await tokens(telling)
    assert await answered(telling, [body], kind) == body
    await until_tokens(telling, before, 31, 10)


@shared
async def test_they_are_found_wherever_an_answer_is_cut_into_parts(telling: Router) -> None:
    body = json.dumps(COMPLETION, separators=(",", ":")).encode()
    cuts = range(body.index(b'"usage":{"prompt'), len(body))
    before = await tokens(telling)
    for cut in cuts:
        assert await answered(telling, [body[:cut], body[cut:]]) == body
    assert await answered(telling, [body[at : at + 1] for at in range(len(body))]) == body
    await until_tokens(telling, before, 31 * (len(cuts) + 1), 10 * (len(cuts) + 1))


@shared
async def test_an_embedding_has_tokens_of_its_prompt_alone(telling: Router) -> None:
    body = b'{"data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}'
    before = await tokens(telling)
    assert await answered(telling, [body], path="/v1/embeddings") == body
    await until_tokens(telling, before, 5, 0)
    assert no_errors(telling)


WRONG = [
    b'{"usage": {"prompt_tokens": %s, "completion_tokens": 1}}' % wrong
    for wrong in (b"9" * 30, b"100000001", b"-5", b"1.5", b"1e9", b'"5"', b"null", b"[5]", b"0x10", b"", b"NaN")
]


@shared
@pytest.mark.parametrize(
    "body",
    [
        *WRONG,
        b"{}",
        b"",
        b'{"usage": "prompt_tokens"}',
        b'{"usage": {"prompt_tokens": 5',
        b'{"usage": {"prompt_tokens": 5' + b" " * 100_000,
        b'"usage": {' * 20_000,
        b'{"usage": {"total_tokens": 5}}',
        b'{"choices": ["usage"], "prompt_tokens": 5}',
        b"\xff\xfe\x00" * 1000,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
async def test_a_wrong_number_is_not_counted_and_harms_nothing(telling: Router, body: bytes) -> None:
    before = await tokens(telling)
    assert await answered(telling, [body]) == body
    good = json.dumps(COMPLETION).encode()
    assert await answered(telling, [good]) == good
    await until_tokens(telling, before, 31, 10)
    assert no_errors(telling)


@shared
async def test_what_is_no_readable_json_is_let_through_unread(telling: Router) -> None:
    body = json.dumps(COMPLETION).encode()
    before = await tokens(telling)
    assert await answered(telling, [body], "text/plain") == body
    assert await answered(telling, [body], encoding="br") == body
    assert await answered(telling, [body]) == body
    await until_tokens(telling, before, 31, 10)


@shared
async def test_an_answer_that_was_cut_is_not_counted(telling: Router) -> None:
    before = await tokens(telling)

    async def behaves(request: web.Request, _: bytes) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": EVENTS})
        await answer.prepare(request)
        await answer.write(events({"usage": USAGE}))
        assert request.transport is not None
        request.transport.abort()
        return answer

    telling.engine.behaves = behaves
    async with telling.session.post(telling.url + CHAT, data=b'{"model": "assistant"}') as found:
        with pytest.raises(aiohttp.ClientPayloadError):
            await found.read()
    good = json.dumps(COMPLETION).encode()
    assert await answered(telling, [good]) == good
    await until_tokens(telling, before, 31, 10)
