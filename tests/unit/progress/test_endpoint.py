"""The progress endpoint: who may post, what is written of it, and when."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lorikeet_api.progress import AUDIENCE, path
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube import identity
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.identity import TOKEN_REVIEW, TRUSTED_SECONDS, Callers
from lorikeet_operator.kube.kinds import POD, Key, Object
from lorikeet_operator.kube.writer import Writer
from lorikeet_operator.progress.board import INTERVAL, Board
from lorikeet_operator.progress.endpoint import Endpoint
from tests.resources import job_body
from tests.unit.kube.api import Api, client_for, serve
from tests.unit.kube.clock import FakeClock

NAME = Key("team-a", "sql-v1")
PODS = {"good": Key("team-a", "sql-v1-train-0"), "other": Key("team-a", "other-train-0")}


@dataclass
class Reviews(Api):
    """An API server that knows a few tokens."""

    status: dict[str, dict[str, Any]] = field(default_factory=dict)

    hold: asyncio.Event = field(default_factory=asyncio.Event)
    """Reviews wait for it."""
    hold_status: asyncio.Event = field(default_factory=asyncio.Event)
    """Writes of a status wait for it."""
    refused: int = 0
    """So many writes of a status are refused."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/status"):
            await self.hold_status.wait()
        if request.path.endswith("/status") and self.refused:
            self.refused -= 1
            return web.Response(status=500, text="etcd")
        if request.path == TOKEN_REVIEW.path() and not self.answers:
            body = json.loads(await request.text())
            assert body["spec"]["audiences"] == [AUDIENCE]
            await self.hold.wait()
            self.reviewed.append(body["spec"]["token"])
            known = self.status.get(body["spec"]["token"], {"authenticated": False})
            return web.json_response({**body, "status": known}, status=201)
        return await super().handle(request)

    reviewed: list[str] = field(default_factory=list)


@dataclass
class World:
    """A job whose trainer runs, and the endpoint."""

    api: Reviews
    cache: Cache
    board: Board
    clock: FakeClock
    http: TestClient[web.Request, web.Application]

    async def post(self, token: str = "good", key: Key = NAME, **status: Any) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = await self.http.post(path(*key), json={"trainerStatus": status}, headers=headers)
        return answer.status

    def put(self, obj: Object) -> None:
        kind = FINETUNEJOB if obj.get("kind") == "FineTuneJob" else POD
        self.cache.put(kind, self.api.add(kind, obj))

    @property
    def job(self) -> Object:
        return self.api.objects[FINETUNEJOB.path(*NAME)]

    @property
    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = (self.job.get("status") or {}).get("progress", {})
        return found

    @property
    def written(self) -> int:
        return sum("/status" in seen.path for seen in self.api.writes)


def pod(key: Key, job: str, owner: str) -> Object:
    labels = {"lorikeet.dev/finetunejob": job}
    owners = [{"controller": True, "uid": owner}]
    metadata = {"name": key.name, "namespace": key.namespace, "uid": f"uid-of-{key.name}"}
    return {"metadata": {**metadata, "labels": labels, "ownerReferences": owners}, "status": {}}


def known(key: Key, audience: str = AUDIENCE, uid: str | None = None) -> dict[str, Any]:
    """Return what the API server says of a pod's token."""
    extra = {
        "authentication.kubernetes.io/pod-name": [key.name],
        "authentication.kubernetes.io/pod-uid": [uid or f"uid-of-{key.name}"],
    }
    user = {"username": f"system:serviceaccount:{key.namespace}:default", "extra": extra}
    return {"authenticated": True, "audiences": [audience], "user": user}


@pytest.fixture
async def world(clock: FakeClock) -> AsyncIterator[World]:
    api = Reviews(kinds=(FINETUNEJOB, POD, TOKEN_REVIEW))
    api.hold.set()
    api.hold_status.set()
    api.status = {name: known(key) for name, key in PODS.items()}
    api.status["elsewhere"] = known(PODS["good"], audience="https://kubernetes.default.svc")
    api.status["reborn"] = known(PODS["good"], uid="another")
    api.status["person"] = {"authenticated": True, "audiences": [AUDIENCE], "user": {"username": "admin"}}
    server = await serve(api)
    async with client_for(server) as client:
        cache = Cache()
        cache.register(FINETUNEJOB)
        cache.register(POD)
        board = Board(cache, Writer(client, cache), clock.now)
        callers = Callers(client, AUDIENCE, clock.now)
        endpoint = Endpoint(cache, callers, board, lambda: datetime(2026, 11, 23, 10, tzinfo=UTC))
        async with TestClient(TestServer(endpoint.app())) as http:
            made = World(api, cache, board, clock, http)
            made.put({**job_body(), "status": {"phase": "Running", "jobUid": "job-1"}})
            made.put(pod(PODS["good"], "sql-v1", "job-1"))
            made.put(pod(PODS["other"], "other", "job-2"))
            yield made
    await server.close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_what_a_pod_tells_is_in_the_status(world: World) -> None:
    assert await world.post(progressPercentage=10, metrics=[{"name": "loss", "value": "1.5"}]) == 200
    await world.board.turn()
    assert (world.progress["percent"], world.progress["loss"], world.progress["pod"]) == (10, 1.5, "sql-v1-train-0")
    write = next(seen for seen in world.api.writes if "/status" in seen.path)
    assert write.body["status"].keys() == {"progress"}, "the rest is the reconciler's"


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("", 401),
        ("unknown", 401),
        ("elsewhere", 401),  # a token for the API server, that a thief could have
        ("person", 401),
        ("other", 403),
        ("reborn", 503),  # a namesake that the watch has not brought yet
    ],
)
async def test_nobody_else_may_report(world: World, token: str, status: int) -> None:
    assert await world.post(token, progressPercentage=10) == status
    await world.board.turn()
    assert world.progress == {}


@pytest.mark.parametrize("key", [Key("team-b", "sql-v1"), Key("team-a", "other"), Key("team-a", "none")])
async def test_a_pod_reports_on_its_own_job_alone(world: World, key: Key) -> None:
    world.put({**job_body("other"), "status": {"phase": "Running", "jobUid": "job-2"}})
    assert await world.post("good", key, progressPercentage=10) == 403


async def test_a_pod_of_an_earlier_batch_job_may_not(world: World) -> None:
    world.put({**world.job, "status": {"phase": "Running", "jobUid": "job-3"}})
    assert await world.post(progressPercentage=10) == 403


async def test_a_pod_that_nobody_controls_may_not(world: World) -> None:
    """Anyone who may create pods in the namespace may give one the job's label."""
    loose = pod(PODS["good"], "sql-v1", "job-1")
    world.put({**loose, "metadata": {**loose["metadata"], "ownerReferences": []}})
    world.put({**world.job, "status": {"phase": "Starting"}})
    assert await world.post(progressPercentage=10) == 403


@pytest.mark.parametrize("status", [None, {"phase": "Starting"}])
async def test_a_run_that_the_cache_does_not_know_yet_is_asked_to_come_again(world: World, status: Any) -> None:
    world.put({**world.job, "status": status})
    assert await world.post(record={"reason": "Published", "message": "m"}) == 503


async def test_a_namesake_gets_nothing_of_what_was_told_before_it(world: World) -> None:
    await world.post(progressPercentage=10)
    world.api.remove(FINETUNEJOB, world.job)
    body = job_body()
    world.put(
        {**body, "metadata": {**body["metadata"], "uid": "reborn"}, "status": {"phase": "Running", "jobUid": "job-9"}}
    )
    await world.board.turn()
    assert world.written == 0


async def test_what_has_ended_is_left_as_it_is(world: World) -> None:
    world.put({**world.job, "status": {"phase": "Succeeded", "jobUid": "job-1"}})
    assert await world.post(progressPercentage=10) == 409
    assert await world.post(record={"reason": "Published", "message": "m"}) == 409
    assert world.written == 0


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"trainerStatus": {"progressPercentage": 101}}', b'{"trainerStatus": {"metrics": 1}}']
)
async def test_nonsense_is_refused_in_words(world: World, body: bytes) -> None:
    answer = await world.http.post(path(*NAME), data=body, headers={"Authorization": "Bearer good"})
    assert answer.status == 400
    assert (await answer.json())["message"]


async def test_a_body_without_end_is_refused(world: World) -> None:
    answer = await world.http.post(path(*NAME), data=b"x" * 100_000, headers={"Authorization": "Bearer good"})
    assert answer.status == 413


async def test_the_api_server_is_asked_once_a_minute_for_a_token(world: World) -> None:
    for _ in range(5):
        await world.post(progressPercentage=10)
    assert world.api.reviewed == ["good"]
    world.clock.advance(TRUSTED_SECONDS + 1)
    await world.post(progressPercentage=10)
    assert world.api.reviewed == ["good", "good"]


async def test_strangers_tokens_are_not_all_looked_at_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_ASKED", 5)
    world.api.hold.clear()
    posts = [asyncio.create_task(world.post(f"stranger-{number}")) for number in range(20)]
    done, _ = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
    assert {post.result() for post in done} == {503}
    world.api.hold.set()
    answers = Counter(await asyncio.gather(*posts))
    assert answers == {401: 5, 503: 15}


async def test_an_api_server_that_is_away_is_no_refusal(world: World) -> None:
    world.api.answers.append(web.Response(status=500, text="etcd"))
    assert await world.post(progressPercentage=10) == 503


async def test_many_posts_are_few_writes_and_the_last_one_counts(world: World) -> None:
    for percent in range(10):
        await world.post(progressPercentage=percent)
        await world.board.turn()
    assert (world.written, world.progress["percent"]) == (1, 0)
    world.clock.advance(INTERVAL)
    await world.board.turn()
    assert (world.written, world.progress["percent"]) == (2, 9)


async def test_a_record_is_written_before_it_is_acknowledged(world: World) -> None:
    await world.post(progressPercentage=10)
    await world.board.turn()
    record = {"reason": "Published", "message": "m", "metrics": {"trainLoss": 0.5}}
    assert await world.post(progressPercentage=100, record=record) == 200
    assert (world.progress["percent"], world.progress["record"]) == (100, {**record, "retryable": False})


async def test_a_write_that_meets_the_reconcilers_is_made_again(world: World) -> None:
    # The watch is behind: the reconciler has written meanwhile.
    world.api.add(FINETUNEJOB, {**world.job, "status": {"phase": "Running", "jobUid": "job-1", "attempts": 1}})
    await world.post(progressPercentage=10)
    await world.board.turn()
    assert world.progress["percent"] == 10


async def test_a_write_that_fails_is_made_again_later(world: World) -> None:
    await world.post(progressPercentage=10)
    world.api.answers.append(web.Response(status=500, text="etcd"))
    await world.board.turn()
    assert world.progress == {}
    world.clock.advance(INTERVAL)
    await world.board.turn()
    assert world.progress["percent"] == 10


async def test_a_record_that_could_not_be_written_takes_nothing_with_it(world: World) -> None:
    await world.post(progressPercentage=10, metrics=[{"name": "loss", "value": "1.5"}])
    assert world.written == 0
    world.api.refused = 1
    assert await world.post(record={"reason": "Published", "message": "m"}) == 503
    await world.board.turn()
    assert (world.progress["loss"], world.progress["record"]["reason"]) == (1.5, "Published")


async def test_a_pod_that_tells_its_end_all_the_time_costs_one_write(world: World) -> None:
    record = {"reason": "Published", "message": "m"}
    world.api.hold_status.clear()
    first = [asyncio.create_task(world.post(record=record)) for _ in range(5)]
    done, waiting = await asyncio.wait(first, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(waiting) > 1:
        more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert more, "one of them writes, the others are told to come again"
        done |= more
    assert {task.result() for task in done} == {503}
    world.api.hold_status.set()
    assert [await task for task in waiting] == [200]
    assert await world.post(record=record) == 200
    assert world.written == 1


async def test_a_status_that_this_version_cannot_read_holds_no_other_job_up(world: World) -> None:
    odd = {**job_body("odd"), "status": {"phase": "Running", "jobUid": "job-2", "progress": {"pod": 1}}}
    world.put({**odd, "metadata": {**odd["metadata"], "uid": "odd"}})
    world.put(pod(PODS["other"], "odd", "job-2"))
    assert await world.post("other", Key("team-a", "odd"), progressPercentage=10) == 200
    assert await world.post(progressPercentage=10) == 200
    await world.board.turn()
    assert world.progress["percent"] == 10
    written = world.written
    await world.board.flush()
    assert world.written == written


async def test_all_that_waits_is_written_at_a_shutdown(world: World) -> None:
    for percent in (10, 20):
        await world.post(progressPercentage=percent)
        await world.board.turn()
    assert world.progress["percent"] == 10
    await world.board.flush()
    assert world.progress["percent"] == 20


async def test_a_job_that_is_gone_is_forgotten(world: World) -> None:
    await world.post(progressPercentage=10)
    world.cache.delete(FINETUNEJOB, world.job)
    await world.board.turn()
    await world.board.turn()
    assert world.written == 0


async def test_two_replicas_keep_the_end_whoever_writes_last(world: World) -> None:
    await world.post(progressPercentage=99, stage="publish")  # waits here for its turn
    record = {"reason": "Published", "message": "m", "retryable": False}
    told = {"pod": "sql-v1-train-0", "updatedTime": "2026-11-23T10:00:00Z", "percent": 100, "record": record}
    world.put({**world.job, "status": {**world.job["status"], "progress": told}})  # by the other one
    await world.board.turn()
    assert (world.progress["percent"], world.progress["record"]) == (100, record)
