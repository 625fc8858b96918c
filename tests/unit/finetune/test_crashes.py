"""An operator that is killed at any write of a job's life leaves nothing twice and nothing lost.

Each life is lived without a fault; that shows which writes there are. Then it is lived again for each of them, with the
operator killed right before or right after that write has reached the API server, and a fresh one in its place.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import takewhile
from typing import Any

import pytest

from lorikeet_operator import watched
from lorikeet_operator.finetune.reconcile import FineTuneController as Controller
from lorikeet_operator.kinds import FINETUNEJOB, TUNINGPROFILE
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.events import Recorder
from lorikeet_operator.kube.kinds import JOB, POD, Key, Object, key_of
from lorikeet_operator.kube.throttle import TokenBucket
from lorikeet_operator.kube.writer import Writer
from tests.unit.finetune.test_agent import SOUND, ends
from tests.unit.finetune.test_deletion import DELETED, deleted, is_gone, its_adapter, served
from tests.unit.finetune.test_reconcile import (
    CLEANUP,
    KINDS,
    PREEMPTED,
    PREFLIGHT,
    RECORD,
    RECOVER,
    RUNNING,
    TRAIN,
    World,
    ended,
    holds,
    profile_with_generation,
    request,
    steered,
)
from tests.unit.kube.api import Api, configuration_for, serve

Event = Callable[[World], Any]


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Fate:
    """Which write kills the operator: the number of it, and whether the API server still gets it."""

    number: int = -1
    arrives: bool = False
    writes: list[str] = field(default_factory=list)


class MortalClient(Client):
    """Sends requests until fate strikes."""

    fate: Fate

    async def _request(self, verb: str, kind: Any, method: str, path: str, *rest: Any, **more: Any) -> Object:
        if method == "GET":
            return await super()._request(verb, kind, method, path, *rest, **more)
        fate, number = self.fate, len(self.fate.writes)
        fate.writes.append(f"{method} {path}")
        if number == fate.number and not fate.arrives:
            raise Killed
        answer = await super()._request(verb, kind, method, path, *rest, **more)
        if number == fate.number:
            raise Killed
        return answer


@asynccontextmanager
async def cluster(fate: Fate) -> AsyncIterator[World]:
    api = Api(kinds=KINDS)
    server = await serve(api)
    async with MortalClient(configuration_for(server), "tester", TokenBucket(10**6, 10**6), 10) as client:
        client.fate = fate

        def start() -> tuple[Cache, Controller]:
            """Start an operator that knows nothing but what the API server has."""
            cache = Cache()
            for watch in (*Controller.watches, watched.MODELDEPLOYMENTS):
                cache.register(watch.kind, watch.index, watch.slim)
                plural = f"/{watch.kind.plural}/"
                cache.replace(watch.kind, [obj for path, obj in api.objects.items() if plural in path], api.version)
            kube = Kube(cache, Writer(client, cache), Recorder(client, "tester"), client)
            return cache, Controller(kube, "trainer:test", lambda: world.now, agent_image="agent:test")

        world = World(api, *start())
        world.restart = start
        world.put(TUNINGPROFILE, profile_with_generation())
        world.put(FINETUNEJOB, request())
        yield world
    await server.close()


def is_made(world: World) -> None:
    world.batch_job_says(active=1)
    world.pod("Pending", {"waiting": {"reason": "ContainerCreating"}})


def loses_its_pod(world: World) -> None:
    world.batch_job_says(holds("Complete"), succeeded=1)
    world.delete(POD, Key("team-a", "p0"))


BEGINNING: tuple[Event, ...] = (
    lambda world: None,
    lambda world: ends(world, PREFLIGHT, 0, SOUND),
    is_made,
    lambda world: world.pod("Running", RUNNING),
)
INVALID = {"reason": "DataInvalid", "message": "train.jsonl, line 37: not JSON"}
FULL = {"reason": "OutOfMemory", "message": "lower training.microBatchSize"}


@dataclass(frozen=True)
class Life:
    """What happens to a job, one thing after the other."""

    events: tuple[Event, ...]
    jobs: tuple[Key, ...]
    """The batch Jobs that are made for it."""
    end: Callable[[World], bool]
    """Whether it has ended as such a life does."""


LIVES = {
    "is interrupted, suspended and resumed, and succeeds": Life(
        (
            *BEGINNING,
            lambda world: world.pod("Failed", ended(75, PREEMPTED, 40)),
            lambda world: world.pod("Running", RUNNING, "p1"),
            lambda world: steered(world, suspend=True),
            lambda world: world.pod("Failed", ended(75, PREEMPTED, 50), "p1"),
            lambda world: steered(world, suspend=False, ttlSecondsAfterFinished=60),
            lambda world: world.pod("Running", RUNNING, "p2"),
            lambda world: world.pod("Succeeded", ended(0, RECORD, 90), "p2"),
            lambda world: world.batch_job_says(holds("Complete"), succeeded=1),
        ),
        jobs=(PREFLIGHT, TRAIN),
        end=lambda world: (
            has_ended(world, "Succeeded", "Published", attempts=3, preemptions=1, activeSeconds=180)
            and world.get(JOB, TRAIN)["spec"]["ttlSecondsAfterFinished"] == 60
        ),
    ),
    "fails in a way that no retry changes": Life(
        (
            *BEGINNING,
            lambda world: world.pod("Failed", ended(65, INVALID)),
            lambda world: world.batch_job_says(holds("Failed", reason="PodFailurePolicy"), failed=1),
        ),
        jobs=(PREFLIGHT, TRAIN),
        end=lambda world: has_ended(world, "Failed", "DataInvalid", message=INVALID["message"], attempts=1),
    ),
    "is ended by us before its batch Job ends": Life(
        (
            *BEGINNING,
            lambda world: world.pod("Failed", ended(66, FULL)),
            lambda world: world.batch_job_says(holds("Failed", reason="DeadlineExceeded"), failed=1),
        ),
        jobs=(PREFLIGHT, TRAIN),
        end=lambda world: (
            has_ended(world, "Failed", "OutOfMemory", message=FULL["message"])
            and world.get(JOB, TRAIN)["spec"]["activeDeadlineSeconds"] == 1
        ),
    ),
    "fails its check": Life(
        (lambda world: None, lambda world: ends(world, PREFLIGHT, 65, INVALID)),
        jobs=(PREFLIGHT,),
        end=lambda world: has_ended(world, "Failed", "DataInvalid", message=INVALID["message"]),
    ),
    "adopts a result that is there already": Life(
        (lambda world: None, lambda world: ends(world, PREFLIGHT, 0, {**RECORD, "reason": "Adopted"})),
        jobs=(PREFLIGHT,),
        end=lambda world: has_ended(world, "Succeeded", "Adopted", artifacts=RECORD["artifacts"]),
    ),
    "loses its record, which is found in what it has published": Life(
        (*BEGINNING, loses_its_pod, lambda world: ends(world, RECOVER, 0, RECORD)),
        jobs=(PREFLIGHT, TRAIN, RECOVER),
        end=lambda world: has_ended(world, "Succeeded", "Published", artifacts=RECORD["artifacts"]),
    ),
    "is deleted with all that it has written": Life(
        (
            lambda world: steered(world, deletionPolicy="Delete"),
            *BEGINNING,
            lambda world: ends(world, TRAIN, 0, RECORD),
            deleted,
            lambda world: ends(world, CLEANUP, 0, DELETED),
        ),
        jobs=(PREFLIGHT, TRAIN, CLEANUP),
        end=lambda world: is_gone(world) and world.told()[-1] == "CleanedUp",
    ),
    "is deleted while it is served": Life(
        (
            lambda world: steered(world, deletionPolicy="Delete"),
            *BEGINNING,
            lambda world: ends(world, TRAIN, 0, RECORD),
            lambda world: served(world, adapters=[its_adapter(world)]),
            deleted,
            lambda world: served(world),
            lambda world: ends(world, CLEANUP, 0, DELETED),
        ),
        jobs=(PREFLIGHT, TRAIN, CLEANUP),
        end=lambda world: is_gone(world) and world.told()[-1] == "CleanedUp" and "StillServed" in world.told(),
    ),
    "is deleted while it trains": Life(
        (
            lambda world: steered(world, deletionPolicy="Delete"),
            *BEGINNING,
            deleted,
            lambda world: ends(world, TRAIN, 75, PREEMPTED),
            lambda world: ends(world, CLEANUP, 0, DELETED),
        ),
        jobs=(PREFLIGHT, TRAIN, CLEANUP),
        end=lambda world: (
            is_gone(world)
            and world.told()[-1] == "CleanedUp"
            and world.get(JOB, TRAIN)["spec"]["activeDeadlineSeconds"] == 1
        ),
    ),
}


def has_ended(world: World, phase: str, reason: str, **status: Any) -> bool:
    """Return whether the job says that it has ended so."""
    finding = world.condition("Complete" if phase == "Succeeded" else "Failed")
    said = {name: world.status.get(name) for name in status}
    return (world.status["phase"], finding["status"], finding["reason"], said) == (phase, "True", reason, status)


async def live(world: World, life: Life) -> None:
    """Let everything happen, and the operator see each thing; one that is killed is replaced."""
    for happens in life.events:
        world.now += timedelta(seconds=1)
        happens(world)
        for _ in range(3):  # the answer to our own write comes back as a change, too
            try:
                await world.reconcile(0)
            except Killed:
                world.cache, world.controller = world.restart()
            the_watch_tells_what_is_gone(world)


def the_watch_tells_what_is_gone(world: World) -> None:
    for body in world.cache.all(FINETUNEJOB):
        if FINETUNEJOB.path(*key_of(body)) not in world.api.objects:
            metadata = {**body["metadata"], "resourceVersion": str(world.api.version)}
            world.cache.delete(FINETUNEJOB, {**body, "metadata": metadata})


def outcome(world: World) -> dict[str, Any]:
    """Return all that is left, but for what depends on the number of requests, and when an Event was first told."""
    return {path: _plain(obj) for path, obj in world.api.objects.items()}


def parts(left: dict[str, Any]) -> tuple[dict[str, Any], Counter[tuple[str, str, str]]]:
    """Return what is left, and apart from it how often each thing was told: an Event's name tells its occasion."""
    events = (obj for path, obj in left.items() if "/events/" in path)
    return (
        {path: obj for path, obj in left.items() if "/events/" not in path},
        Counter((event["type"], event["reason"], event["message"]) for event in events),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        volatile = ("resourceVersion", "uid", "jobUid", "firstTimestamp", "lastTimestamp")
        return {name: _plain(each) for name, each in value.items() if name not in volatile}
    return [_plain(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
async def test_a_crash_at_any_write_changes_nothing_in_the_end(life: Life) -> None:
    reference = Fate()
    async with cluster(reference) as world:
        await live(world, life)
        assert life.end(world)
        expected, events = parts(outcome(world))
        assert {path for path in expected if "/jobs/" in path} == {JOB.path(*job) for job in life.jobs}
    for number in range(len(reference.writes)):
        for arrives in (False, True):
            fate = Fate(number, arrives)
            async with cluster(fate) as world:
                await live(world, life)
                what = f"killed {'after' if arrives else 'before'} write {number}: {fate.writes[number]}"
                left, told = parts(outcome(world))
                assert left == expected, what
                assert life.end(world), what
                # An Event that was to follow a write may be lost, never doubled or made up: conditions have it all.
                assert told <= events, what
                unsaid = takewhile(lambda write: "/events" in write, reference.writes[number + arrives :])
                assert told.total() >= events.total() - len(list(unsaid)), what
                assert world.made(JOB) == len(life.jobs), what
