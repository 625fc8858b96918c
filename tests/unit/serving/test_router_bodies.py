"""The router reads "model" as a JSON parser does, or not at all: whatever a client writes, it does not choose more."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorikeet_operator.serving.router import Route, Variant
from tests.unit.serving.envoy import Engine, Router, router_before

SERVED = "adapter-12345678"
MODELS = ("support", "org/sql-v1", "a b")
ROUTES = [Route(model, [Variant("only", f"{SERVED}-{number}", 1)]) for number, model in enumerate(MODELS)]
LED = {route.model: route.variants[0].served for route in ROUTES}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def router(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Router]:
    engine = Engine(set(LED.values()))
    async with router_before(engine, ROUTES, tmp_path_factory.mktemp("router")) as found:
        for model in MODELS:
            await found.until(model)
        yield found


texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ['"', "\\", '{"model": "x"}', "model", "}"]
)
names = st.sampled_from([*MODELS, *LED.values(), "model", "nobody"]) | texts
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts | st.just("model"), children, max_size=4),
    max_leaves=12,
)
spaces = st.text(" \t\r\n", max_size=2)


@st.composite
def written(draw: st.DrawFn, text: str) -> str:
    """Return a JSON string that says `text`, with escapes where one may be."""
    out = []
    for letter in text:
        plain = json.dumps(letter, ensure_ascii=draw(st.booleans()))[1:-1]
        escaped = "".join(f"\\u{ord(unit):04x}" for unit in letter if ord(unit) < 0x10000)
        out.append(escaped if escaped and draw(st.integers(0, 9)) == 0 else plain)
    return '"' + "".join(out) + '"'


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Return a JSON object as text: keys in any order, twice or escaped, with any space between."""
    members = []
    others = draw(st.lists(st.sampled_from(["model", "messages", "Model"]) | texts, max_size=4))
    keys = draw(st.permutations([*others, *draw(st.sampled_from([[], ["model"], ["model", "model"]]))]))
    for key in keys:
        value = draw(names) if key == "model" and draw(st.integers(0, 4)) else draw(values)
        text = draw(written(value)) if isinstance(value, str) else json.dumps(value, ensure_ascii=draw(st.booleans()))
        members.append(draw(spaces) + draw(written(key)) + draw(spaces) + ":" + draw(spaces) + text + draw(spaces))
    return (draw(spaces) + "{" + (",".join(members) or draw(spaces)) + "}" + draw(spaces)).encode()


def parsed(body: bytes) -> list[tuple[str, Any]] | None:
    """Return the members of a JSON object in order, those that are there twice as well; None if it is none."""
    found: list[list[tuple[str, Any]]] = []

    def keep(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(members)
        return dict(members)

    try:
        return found[-1] if isinstance(json.loads(body, object_pairs_hook=keep), dict) else None
    except ValueError:
        return None


limits = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


@limits
@given(body=bodies())
async def test_a_body_is_led_by_its_one_model_or_not_at_all(router: Router, body: bytes) -> None:
    members = parsed(body)
    assert members is not None, "it is JSON as we have written it"
    router.engine.seen.clear()
    status, answer, _ = await router.send(body)
    models = [value for key, value in members if key == "model"]
    wanted = LED.get(models[0]) if len(models) == 1 and isinstance(models[0], str) else None
    if status != 200:
        assert status in (400, 404), "refused, not failed"
        assert not router.engine.seen
        if wanted:  # a request for a model that there is; it may only be told to write its keys plainly
            assert b"\\" in body
            assert "an escape in it" in answer["error"]["message"]
        return
    assert wanted is not None
    got = parsed(router.engine.seen[0]["body"])
    assert got == [(key, wanted if key == "model" else value) for key, value in members]


@limits
@given(body=bodies(), cut=st.integers(0, 60), put=st.binary(max_size=3))
async def test_a_body_that_was_damaged_is_never_led_elsewhere_than_a_parser_says(
    router: Router, body: bytes, cut: int, put: bytes
) -> None:
    damaged = body[:cut] + put + body[cut + 1 :]
    router.engine.seen.clear()
    status, _, _ = await router.send(damaged)
    if status != 200:
        assert status in (400, 404)
        assert not router.engine.seen
        return
    got = parsed(router.engine.seen[0]["body"])
    if got is None:
        return  # the engine's parser refuses it
    models = [value for key, value in got if key == "model"]
    before = [value for key, value in parsed(damaged) or [] if key == "model"]
    assert len(models) == len(before) == 1
    assert LED[before[0]] == models[0]
