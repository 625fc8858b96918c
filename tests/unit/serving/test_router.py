"""What becomes of a request between client and engine, through a real Envoy."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from lorikeet_operator.serving.router import LED, Limits, Route, Variant
from tests.unit.serving.envoy import CHAT, Engine, Router, eventually, router_before

SQL, DPO = "sql-11111111", "sql-dpo-22222222"
A, B = Variant("a", SQL, 90), Variant("b", DPO, 10)
SUPPORT = Route("support", [A, B], sticky="X-User-Id")
BASE = Route("assistant", [Variant("base", "smollm2", 1)])
ROUTES = (SUPPORT, BASE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Router]:
    """One router for tests that leave it as it is."""
    engine = Engine({SQL, DPO, "smollm2"})
    async with router_before(engine, ROUTES, tmp_path_factory.mktemp("router")) as found:
        for model, variant in (("support", "a"), ("support", "b"), ("assistant", "base")):
            await found.until(model, x_lorikeet_variant=variant)
        yield found


@pytest.fixture
def router(shared: Router) -> Router:
    shared.engine.seen.clear()
    return shared


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_engine_gets_the_served_name_and_every_other_byte_as_it_was(router: Router) -> None:
    body = (
        b' {"seed": 9007199254740993,\n "messages" : [{"model": "mine", "content": "say \\"model\\": {["}],'
        b'"model"\t: "support", "x": "\xc3\xa9\\u00e9"} \n'
    )
    status, _, headers = await router.send(body, x_lorikeet_variant="b")
    assert status == 200
    assert (headers["x-lorikeet-variant"], headers["x-lorikeet-revision"]) == ("b", DPO)
    assert router.engine.seen[0]["body"] == body.replace(b'"support"', f'"{DPO}"'.encode())


async def test_a_body_in_chunks_is_led_like_any_other(router: Router) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in b'{"model": "assistant"}':
            yield bytes([byte])

    async with router.session.post(router.url + CHAT, data=chunks()) as answer:
        assert await answer.json(content_type=None) == {"model": "smollm2"}


async def test_a_large_body_is_led_and_a_larger_one_is_refused(router: Router) -> None:
    limit = Limits().max_request_bytes
    assert (await router.send(b'{"model": "assistant", "x": "%s"}' % (b"y" * (limit - 100))))[0] == 200
    status, answer, _ = await router.send(b'{"model": "assistant", "x": "%s"}' % (b"y" * limit))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not a JSON object"),
        (b"model=support", "not a JSON object"),
        (b'["model"]', "not a JSON object"),
        (b'{"model": "support"', "not a JSON object"),
        (b'{"model": "support"} {}', "not a JSON object"),
        (b'{"model": "support",}', "not a JSON object"),
        ('{"model": "support"}'.encode("utf-16"), "not a JSON object"),
        (b"{}", 'no "model"'),
        (b'{"messages": [{"model": "support"}]}', 'no "model"'),
        (b'{"model": ["support"]}', "must be a string"),
        (b'{"model": "support", "model": "%s"}' % DPO.encode(), "more than one"),
        (b'{"model": "support", "mod\\u0065l": "%s"}' % DPO.encode(), "an escape in it"),
    ],
)
async def test_what_the_script_does_not_understand_gets_nowhere(router: Router, body: bytes, words: str) -> None:
    status, answer, _ = await router.send(body)
    assert (status, answer["error"]["code"]) == (400, "invalid_body")
    assert words in answer["error"]["message"]
    assert not router.engine.seen


@pytest.mark.parametrize("model", ["nobody", SQL, "smollm2", "", "Support", "support ", "__index", 'quo"te', "list"])
async def test_a_name_that_is_no_model_gets_nowhere_also_one_that_the_engine_knows(router: Router, model: str) -> None:
    status, answer, _ = await router.ask(model)
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (404, "model_not_found", "not_found_error")
    assert not router.engine.seen


async def test_a_name_may_be_written_with_escapes(router: Router) -> None:
    status, answer, _ = await router.send(b'{"model": "\\u0061ssistant"}')
    assert (status, answer) == (200, {"model": "smollm2"})


async def test_no_client_has_a_say_in_where_it_is_led(router: Router) -> None:
    status, answer, _ = await router.ask("assistant", **{LED: DPO})
    assert (status, answer["model"]) == (200, "smollm2")
    assert LED not in {name.lower() for name in router.engine.seen[0]["headers"]}
    assert (await router.ask("nobody", **{LED: DPO}))[0] == 404


async def test_the_engine_has_no_say_in_which_variant_has_answered(router: Router) -> None:
    _, _, headers = await router.ask("assistant")
    assert headers["x-lorikeet-variant"] == "base"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/metrics",
        "/docs",
        "/",
        "/v1/../metrics",
        "/v1/chat",
        "/%2e",
    ],
)
async def test_other_paths_of_the_engine_cannot_be_reached(router: Router, path: str) -> None:
    for method in ("GET", "POST"):
        status, _, _ = await router.send(b'{"model": "support"}' if method == "POST" else b"", path, method)
        assert status == 404
    assert not router.engine.seen


@pytest.mark.parametrize(
    "line",
    [
        b"POST /v1/chat/completions/../load_lora_adapter HTTP/1.1",
        b"POST /v1/chat/completions%2f..%2fload_lora_adapter HTTP/1.1",
        b"POST //v1/load_lora_adapter HTTP/1.1",
        b"POST /v1\\load_lora_adapter HTTP/1.1",
        b"PUT /v1/chat/completions HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT 127.0.0.1:8000 HTTP/1.1",
        b"PRI * HTTP/2.0",
    ],
    ids=lambda line: line.decode(),
)
async def test_nor_can_they_by_another_spelling(router: Router, line: bytes) -> None:
    body = b'{"model": "support"}'
    answer = await router.raw(line + b"\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    assert not answer.startswith(b"HTTP/1.1 2")
    assert not router.engine.seen


async def test_a_completion_is_asked_for_by_post(router: Router) -> None:
    status, answer, _ = await router.send(b"", CHAT, "GET")
    assert (status, answer["error"]["code"]) == (405, "method_not_allowed")


async def test_a_body_that_is_packed_is_refused(router: Router) -> None:
    status, answer, _ = await router.send(b'{"model": "support"}', content_encoding="gzip")
    assert (status, answer["error"]["code"]) == (415, "unsupported_encoding")


async def test_the_models_are_listed_as_clients_know_them(router: Router) -> None:
    status, answer, _ = await router.send(b"", "/v1/models?after=x", "GET")
    assert (status, [each["id"] for each in answer["data"]]) == (200, ["support", "assistant"])


async def test_a_client_may_name_the_variant_and_an_unknown_one_is_chosen_for_it(router: Router) -> None:
    for name, served in (("a", SQL), ("b", DPO)):
        assert (await router.ask("support", x_lorikeet_variant=name))[1]["model"] == served
    assert (await router.ask("support", x_lorikeet_variant="c"))[0] == 200


async def test_an_answer_is_streamed_as_it_comes(router: Router) -> None:
    router.engine.first_half_arrived.clear()
    async with router.session.post(router.url + CHAT, data=b'{"model": "assistant", "stream": true}') as answer:
        async with asyncio.timeout(10):
            assert await answer.content.readany() == b"data: first\n\n"
        router.engine.first_half_arrived.set()
        assert await answer.read() == b"data: [DONE]\n\n"


async def test_each_answer_names_its_request_as_the_engine_knows_it(router: Router) -> None:
    first, second = [(await router.ask("assistant"))[2]["X-Request-ID"] for _ in range(2)]
    assert [each["headers"]["X-Request-ID"] for each in router.engine.seen] == [first, second]
    assert first != second


@pytest.mark.parametrize("id", ["run-7/ä", "7b2c9ab0-3f0e-1f57-8f0a-0c3f7a1d2e3f"], ids=["words", "an UUID"])
async def test_a_request_keeps_the_id_that_its_client_gave_it(router: Router, id: str) -> None:
    assert (await router.ask("assistant", x_request_id=id))[2]["X-Request-ID"] == id
    assert (await router.ask("assistant", x_request_id="x" * 20_000))[2]["X-Request-ID"] == "x" * 128
    assert router.engine.seen[0]["headers"]["X-Request-ID"] == id


async def test_what_the_router_answers_itself_names_its_request_too(tmp_path: Path) -> None:
    async with router_before(Engine(), [BASE], tmp_path, Limits(max_request_bytes=1000)) as router:
        await router.until_status(503, "assistant")
        for status, body, path in (
            (404, b'{"model": "nobody"}', CHAT),
            (404, b"", "/metrics"),
            (413, b" " * 2000, CHAT),
            (503, b'{"model": "assistant"}', CHAT),
        ):
            for given in ({}, {"x-request-id": "mine"}):
                found, _, headers = await router.send(body, path, **given)
                assert found == status
                assert re.fullmatch(given.get("x-request-id", "[0-9a-f-]{36}"), headers["X-Request-ID"])


async def test_a_base_model_may_be_called_by_a_path(tmp_path: Path) -> None:
    named = Route("base", [Variant("base", "Org/Model-1B", 1)])
    async with router_before(Engine({"Org/Model-1B"}), [named], tmp_path) as router:
        await router.until("base")


@pytest.mark.parametrize("served", ['a"b', "a\\b", "a\nb", "é", "(admin)"])
async def test_a_name_that_would_not_stay_one_is_refused(served: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name"):
        Variant("a", served, 1)


async def test_a_name_is_read_up_to_a_length(tmp_path: Path) -> None:
    """One of megabytes, all escapes, would hold up everybody for a third of a second."""
    long = replace(BASE, model="m" * 300)
    async with router_before(Engine({"smollm2"}), [long], tmp_path) as router:
        await router.until(long.model)
        assert (await router.send(b'{"model": "%s"}' % (b"\\u006d" * 300)))[0] == 404
        assert (await router.send(b'{"model": "%s"}' % (b"\\u006d" * (1 << 20))))[0] == 404


async def test_a_connection_to_an_engine_is_given_up_before_the_engine_does(tmp_path: Path) -> None:
    """uvicorn closes one that was idle for five seconds, and a request might just be on its way."""
    async with router_before(Engine({"smollm2"}), [BASE], tmp_path) as router:
        await router.until("assistant")

        async def is_given_up() -> bool:
            async with router.session.get(router.admin + "/stats?filter=smollm2.upstream_cx_idle_timeout") as answer:
                return not (await answer.text()).strip().endswith(" 0")

        await eventually(is_given_up)
        text = (tmp_path / "clusters.json").read_text()
    assert float(re.findall(r'"idle_timeout": "([\d.]+)s"', text)[0]) < 5


async def test_a_variant_that_no_engine_serves_is_not_replaced_by_its_sibling(tmp_path: Path) -> None:
    engine = Engine({SQL})
    async with router_before(engine, ROUTES, tmp_path) as router:
        await router.until("support", x_lorikeet_variant="a")
        status, answer, headers = await router.ask("support", x_lorikeet_variant="b")
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert int(headers["Retry-After"]) > 0
        engine.loaded.add(DPO)
        await router.until("support", x_lorikeet_variant="b")
        engine.loaded.discard(SQL)
        await router.until_status(503, "support", x_lorikeet_variant="a")


async def test_a_script_that_fails_leads_nowhere(tmp_path: Path) -> None:
    """Envoy passes such a request on as it came."""
    engine = Engine({SQL, DPO, "smollm2"})
    fails = 'function envoy_on_request(handle) error("a defect") end'
    async with router_before(engine, ROUTES, tmp_path, script=fails) as router:
        for headers in ({}, {LED: "smollm2"}, {LED.upper(): "smollm2"}):
            status, answer, _ = await router.ask("assistant", **headers)
            assert (status, answer["error"]["code"]) == (500, "not_led")
        assert "a defect" in (tmp_path / "envoy.log").read_text()
    assert not engine.seen


async def test_probes_and_metrics_show_nothing_else_of_the_admin_interface(router: Router) -> None:
    for path, status in (("/ready", 200), ("/metrics", 200), ("/quitquitquit", 404), ("/config_dump", 404), ("/", 404)):
        async with router.session.post(router.status + path) as answer:
            assert answer.status in (status, 405)
            assert (answer.status == 404) == (status == 404)


async def test_many_models_are_listed_whole(tmp_path: Path) -> None:
    """Envoy's own direct responses end at 4,096 bytes."""
    many = [replace(BASE, model=f"model-{number}") for number in range(200)]
    async with router_before(Engine(), many, tmp_path) as router:
        _, answer, _ = await router.send(b"", "/v1/models", "GET")
    assert len(answer["data"]) == 200


@pytest.mark.parametrize("variants", [[], [Variant("b", "smollm2", 0)]], ids=["none", "one without a share"])
async def test_a_model_that_nobody_can_answer_for_yet_is_unavailable(tmp_path: Path, variants: list[Variant]) -> None:
    routes = [Route("support", variants), Route("assistant", [Variant("base", "smollm2", 1)])]
    async with router_before(Engine({"smollm2"}), routes, tmp_path) as router:
        await router.until("assistant")
        status, answer, headers = await router.ask("support")
        assert (status, answer["error"]["code"], headers["Retry-After"]) == (503, "unavailable", "5")
