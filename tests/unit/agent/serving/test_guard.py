"""What reaches an engine from within its pod, and what from elsewhere."""

from typing import Any

import httpx
import pytest

from lorikeet_agent.serving.guard import Guard, Message, Receive, Scope, Send

ELSEWHERE, HERE = "10.1.2.3", "127.0.0.1"


async def engine(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer everything."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"answered"})


async def ask(method: str, path: str, client: str = ELSEWHERE, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(Guard(engine), client=(client, 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as session:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await session.request(method, path, headers=named)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions?echo=1"),
        ("POST", "/v1/embeddings"),
        ("GET", "/health"),
    ],
)
async def test_completions_and_probes_are_for_everybody(method: str, path: str) -> None:
    assert (await ask(method, path)).text == "answered"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/v1/models"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/health"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/completions/render"),
        ("POST", "/V1/completions"),
        ("POST", "/v1/chat/completions%2f..%2f..%2fload_lora_adapter"),
    ],
)
async def test_all_else_is_for_the_pod_alone(method: str, path: str) -> None:
    answer = await ask(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    for inside in (HERE, "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        assert (await ask(method, path, inside)).status_code == 200


@pytest.mark.parametrize(
    "client", ["", "localhost", "10.0.0.1", "169.254.1.1", "::ffff:10.0.0.1", "2001:db8::1", "0.0.0.0"]
)
async def test_only_an_address_of_the_loopback_is_within(client: str) -> None:
    assert (await ask("GET", "/metrics", client)).status_code == 403


@pytest.mark.parametrize("header", ["x_forwarded_for", "Forwarded", "X_Real_IP"])
async def test_nobody_is_within_by_his_own_word(header: str) -> None:
    """A server that trusts its proxies puts what such a header says into the scope."""
    assert (await ask("GET", "/metrics", HERE, **{header: "127.0.0.1"})).status_code == 403


async def test_without_an_address_nobody_is_within() -> None:
    sent = await answers({"type": "http", "method": "GET", "path": "/metrics", "headers": [], "client": None})
    assert sent[0]["status"] == 403


async def test_there_are_no_websockets() -> None:
    scope = {"type": "websocket", "path": "/v1/chat/completions", "headers": [], "client": (ELSEWHERE, 1)}
    assert await answers(scope) == [{"type": "websocket.close", "code": 1008}]


async def test_the_engine_begins_and_ends_as_without_it() -> None:
    assert (await answers({"type": "lifespan"}))[-1]["body"] == b"answered"


async def answers(scope: dict[str, Any]) -> list[Message]:
    """Return what is sent for a request as a server describes it."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("nothing is to be read")

    async def send(message: Message) -> None:
        sent.append(message)

    await Guard(engine)(scope, receive, send)
    return sent
