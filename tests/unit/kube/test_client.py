import asyncio
import json
from collections.abc import Callable
from itertools import count
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from lorikeet_operator.kube import config
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from lorikeet_operator.kube.kinds import Key
from lorikeet_operator.kube.throttle import TokenBucket
from lorikeet_operator.metrics import API_REQUESTS
from tests.unit.kube.api import THING, Api, client_for, configuration_for
from tests.unit.kube.objects import CONFIG_MAP, config_map

A = Key("ns", "a")


def status(code: int, reason: str, message: str = "no", **details: Any) -> web.Response:
    body = {"kind": "Status", "reason": reason, "message": message, "details": details}
    return web.json_response(body, status=code)


async def test_get_returns_the_object(client: Client, api: Api) -> None:
    made = api.add(CONFIG_MAP, config_map(version=1, data={"k": "v"}))
    assert await client.get(CONFIG_MAP, A) == made
    assert api.seen[-1].headers["Authorization"] == "bearer secret"


async def test_lists_are_read_page_by_page_and_items_get_their_kind(client: Client, api: Api) -> None:
    for number in range(5):
        api.add(CONFIG_MAP, config_map(f"n{number}", version=1))
    api.page = 2
    listing = await client.list(CONFIG_MAP, label_selector="a=b")
    assert [item["metadata"]["name"] for item in listing.items] == ["n0", "n1", "n2", "n3", "n4"]
    assert {item["kind"] for item in listing.items} == {"ConfigMap"}
    assert listing.version == api.version
    assert [each.query.get("continue") for each in api.seen] == [None, "2", "4"]
    assert {each.query["labelSelector"] for each in api.seen} == {"a=b"}


async def test_a_list_whose_pages_expired_starts_again(client: Client, api: Api) -> None:
    for number in range(3):
        api.add(CONFIG_MAP, config_map(f"n{number}", version=1))
    api.page, api.expired_tokens = 2, 1
    assert len((await client.list(CONFIG_MAP)).items) == 3
    api.expired_tokens = 3
    with pytest.raises(Unavailable, match="expired"):
        await client.list(CONFIG_MAP)


async def test_an_applied_status_takes_back_our_fields_and_says_who_we_are(client: Client, api: Api) -> None:
    api.add(THING, config_map(version=1))
    await client.apply_status(THING, {"metadata": {"name": "a", "namespace": "ns"}, "status": {"x": 1}})
    (write,) = api.writes
    assert write.path == "/apis/x.dev/v1/namespaces/ns/things/a/status"
    assert write.query == {"fieldManager": "tester", "fieldValidation": "Strict", "force": "true"}
    assert write.headers["Content-Type"] == "application/apply-patch+yaml"
    assert write.body["apiVersion"] == "x.dev/v1"
    assert write.body["kind"] == "Thing"


async def test_a_patch_is_for_the_object_with_that_uid(client: Client, api: Api) -> None:
    held = api.add(CONFIG_MAP, config_map(version=1))
    await client.patch(CONFIG_MAP, A, {"data": {"k": "v"}}, held["metadata"]["uid"])
    assert api.writes[-1].headers["Content-Type"] == "application/merge-patch+json"
    with pytest.raises(Conflict):
        await client.patch(CONFIG_MAP, A, {"data": {"k": "v"}}, "another")


async def test_a_patch_of_a_subresource_goes_there(client: Client, api: Api) -> None:
    held = api.add(THING, config_map(version=1, spec={"x": 1}))
    mark = {"metadata": {"annotations": {"a": "b"}}}
    answer = await client.patch(THING, A, mark, held["metadata"]["uid"], "status")
    (write,) = api.writes
    assert write.path == "/apis/x.dev/v1/namespaces/ns/things/a/status"
    assert write.body == {"metadata": {"annotations": {"a": "b"}, "uid": held["metadata"]["uid"]}}
    assert (answer["metadata"]["annotations"], answer["spec"]) == ({"a": "b"}, {"x": 1})


async def test_an_apply_makes_the_object_and_says_who_we_are(client: Client, api: Api) -> None:
    body = {"metadata": {"name": "a", "namespace": "ns"}, "spec": {"x": 1, "y": 2}}
    made = await client.apply(THING, body)
    assert (made["spec"], made["kind"]) == ({"x": 1, "y": 2}, "Thing")
    (write,) = api.writes
    assert (write.method, write.path) == ("PATCH", "/apis/x.dev/v1/namespaces/ns/things/a")
    assert write.query == {"fieldManager": "tester", "fieldValidation": "Strict", "force": "true"}
    assert write.headers["Content-Type"] == "application/apply-patch+yaml"
    assert (write.body["apiVersion"], write.body["kind"]) == ("x.dev/v1", "Thing")
    assert (await client.apply(THING, {**body, "spec": {"x": 1}}))["spec"] == {"x": 1}


async def test_an_apply_that_names_a_uid_is_for_that_object(client: Client, api: Api) -> None:
    body: dict[str, Any] = {"metadata": {"name": "a", "namespace": "ns", "uid": "another"}, "spec": {"x": 1}}
    with pytest.raises(Conflict):  # 409: there is none
        await client.apply(THING, body)
    held = api.add(THING, config_map(version=1))
    with pytest.raises(Conflict):  # 422: an attempt to change it
        await client.apply(THING, body)
    body["metadata"]["uid"] = held["metadata"]["uid"]
    assert (await client.apply(THING, body))["spec"] == {"x": 1}


@pytest.mark.parametrize(
    ("response", "error", "retryable"),
    [
        (status(404, "NotFound"), NotFound, False),
        (status(409, "AlreadyExists"), AlreadyExists, False),
        (status(409, "Conflict"), Conflict, True),
        (status(403, "Forbidden", "exceeded quota"), Forbidden, False),
        (status(400, "BadRequest"), Invalid, False),
        (status(429, "TooManyRequests"), TooManyRequests, True),
        (status(500, "InternalError"), Unavailable, True),
        (status(503, ""), Unavailable, True),
        (web.Response(status=502, text="<html>bad gateway</html>"), Unavailable, True),
        (status(401, "Unauthorized"), ApiError, False),
    ],
)
async def test_errors_have_types(
    client: Client, api: Api, response: web.Response, error: type[ApiError], retryable: bool
) -> None:
    api.answers.append(response)
    with pytest.raises(ApiError) as caught:
        await client.get(CONFIG_MAP, A)
    assert type(caught.value) is error
    assert caught.value.status == response.status
    assert caught.value.retryable is retryable


async def test_the_fields_of_an_invalid_object_are_named(client: Client, api: Api) -> None:
    causes = [{"field": "spec.x", "message": "must be above 0"}, {"field": "spec.y", "message": "is required"}]
    api.answers.append(status(422, "Invalid", "Thing is invalid", causes=causes))
    with pytest.raises(Invalid) as caught:
        await client.create(CONFIG_MAP, config_map(version=1))
    assert caught.value.causes == ("spec.x: must be above 0", "spec.y: is required")
    assert caught.value.message == "Thing is invalid"


async def test_the_server_s_pause_is_passed_on(client: Client, api: Api) -> None:
    api.answers.append(web.json_response({}, status=429, headers={"Retry-After": "17"}))
    with pytest.raises(TooManyRequests) as caught:
        await client.get(CONFIG_MAP, A)
    assert caught.value.retry_after == 17


async def test_no_answer_in_time_is_unavailable() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError("never")

    silent_server = TestServer(_app(silent))
    await silent_server.start_server()
    try:
        async with client_for(silent_server, timeout=0.05) as client:
            with pytest.raises(Unavailable) as caught:
                await client.get(CONFIG_MAP, A)
    finally:
        await silent_server.close()
    assert caught.value.status == 0
    assert "GET /api/v1/namespaces/ns/configmaps/a" in caught.value.message


async def test_a_server_that_is_not_there_is_unavailable(server: TestServer) -> None:
    async with client_for(server) as client:
        await server.close()
        with pytest.raises(Unavailable):
            await client.get(CONFIG_MAP, A)


async def test_requests_are_counted_by_verb_resource_and_code(client: Client, api: Api) -> None:
    def counted(verb: str, code: str) -> float:
        return float(API_REQUESTS.labels(verb, "things.x.dev", code)._value.get())

    before = counted("create", "201"), counted("get", "404")
    await client.create(THING, config_map(version=1))
    with pytest.raises(NotFound):
        await client.get(THING, Key("ns", "none"))
    assert (counted("create", "201"), counted("get", "404")) == (before[0] + 1, before[1] + 1)


async def test_a_token_that_rotates_is_used_at_once(
    server: TestServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = count()
    configuration = configuration_for(server)

    def refresh(it: Configuration) -> None:
        it.api_key["BearerToken"] = f"bearer t{next(tokens)}"

    monkeypatch.setattr(configuration, "refresh_api_key_hook", refresh)
    api.add(CONFIG_MAP, config_map(version=1))
    async with Client(configuration, "tester", TokenBucket(100, 100)) as client:
        await client.get(CONFIG_MAP, A)
        await client.get(CONFIG_MAP, A)
    first, second = (each.headers["Authorization"] for each in api.seen)
    assert first != second
    assert (await config.connection_info(configuration)).token == "t" + str(next(tokens) - 1)


async def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    time, slept = 0.0, []

    async def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))

    bucket = TokenBucket(10, 3, now=lambda: time, sleep=sleep)
    for _ in range(5):
        await bucket.take()
    assert slept == [0.1, 0.2], "each that waits has its own turn"
    time = 10.0
    for _ in range(4):
        await bucket.take()
    assert slept == [0.1, 0.2, 0.1], "it fills up to the burst and no further"


async def test_each_request_takes_from_the_bucket(server: TestServer, api: Api) -> None:
    api.add(CONFIG_MAP, config_map(version=1))
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    bucket = TokenBucket(1, 2, now=lambda: 0.0, sleep=sleep)
    async with Client(configuration_for(server), "tester", bucket) as client:
        for _ in range(3):
            await client.get(CONFIG_MAP, A)
    assert slept == [1.0]


@pytest.fixture
def kubeconfig(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write one for a server, and have it read."""

    def write(server: str) -> None:
        user = {"name": "u", "user": {"token": "tok"}}
        cluster = {"name": "c", "cluster": {"server": server, "insecure-skip-tls-verify": True}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        file = tmp_path / "kubeconfig"
        body = {"users": [user], "clusters": [cluster], "contexts": [context], "current-context": "x"}
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **body}))
        monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        monkeypatch.setenv("KUBECONFIG", str(file))

    return write


async def test_a_kubeconfig_is_read(kubeconfig: Callable[[str], None]) -> None:
    kubeconfig("https://example.test:6443")
    info = await config.connection_info(await config.load())
    assert (info.server, info.scheme, info.token, info.insecure) == ("https://example.test:6443", "Bearer", "tok", True)


@pytest.mark.parametrize(
    ("server", "around", "proxy"),
    [
        ("https://example.test:6443", "", "http://proxy:3128"),
        ("https://example.test:6443", "elsewhere,.test", None),
        ("https://10.0.0.1:443", "10.0.0.1", None),
        ("https://[fd00::1]:443", "fd00::1", None),
        ("https://[fd00::1]:443", "fd00::2", "http://proxy:3128"),
    ],
)
async def test_the_api_server_is_asked_by_the_proxy_that_the_environment_names(
    kubeconfig: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, server: str, around: str, proxy: str | None
) -> None:
    kubeconfig(server)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", around)
    assert (await config.load()).proxy == proxy


async def test_no_request_looks_for_a_netrc_file(
    kubeconfig: Callable[[str], None], server: TestServer, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread, before each request: that was a fifth of the operator's time."""
    kubeconfig(str(server.make_url("/")).rstrip("/"))
    api.add(CONFIG_MAP, config_map(version=1))
    looked: list[str] = []
    monkeypatch.setattr(aiohttp.ClientSession, "_get_netrc_auth", lambda _, host: looked.append(host))
    async with Client(await config.load(), "tester", TokenBucket(1, 2)) as client:
        await client.get(CONFIG_MAP, A)
    assert looked == []


def _app(handler: Any) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    return app
