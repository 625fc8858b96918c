"""An operator that is killed at any write of a job's life leaves nothing twice and nothing lost.

One life is lived without a fault; it shows which writes there are. Then it is lived again for each of them, with the
operator killed right before or right after that write has reached the API server, and a fresh one in its place.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from lorikeet_operator.finetune.reconcile import FINETUNEJOB, TUNINGPROFILE
from lorikeet_operator.finetune.reconcile import FineTuneController as Controller
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.events import Recorder
from lorikeet_operator.kube.kinds import JOB, Object
from lorikeet_operator.kube.throttle import TokenBucket
from lorikeet_operator.kube.writer import Writer
from tests.unit.finetune.test_reconcile import (
    KINDS,
    PREEMPTED,
    PREFLIGHT,
    RECORD,
    RUNNING,
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
            for watch in Controller.watches:
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


def is_checked(world: World) -> None:
    record = {"reason": "Checked", "message": "checked", "pins": ["a" * 64, "b" * 64]}
    world.pod("Succeeded", ended(0, record), of=PREFLIGHT)
    world.batch_job_says(holds("Complete"), of=PREFLIGHT, succeeded=1)


def is_made(world: World) -> None:
    world.batch_job_says(active=1)
    world.pod("Pending", {"waiting": {"reason": "ContainerCreating"}})


def succeeds(world: World) -> None:
    world.pod("Succeeded", ended(0, RECORD, 90), "p2")
    world.batch_job_says(holds("Complete"), succeeded=1)


LIFE: tuple[Event, ...] = (
    lambda world: None,
    is_checked,
    is_made,
    lambda world: world.pod("Running", RUNNING),
    lambda world: world.pod("Failed", ended(75, PREEMPTED, 40)),
    lambda world: world.pod("Running", RUNNING, "p1"),
    lambda world: steered(world, suspend=True),
    lambda world: world.pod("Failed", ended(75, PREEMPTED, 50), "p1"),
    lambda world: steered(world, suspend=False, ttlSecondsAfterFinished=60),
    lambda world: world.pod("Running", RUNNING, "p2"),
    succeeds,
)
"""What happens to the job, one thing after the other."""


async def live(world: World) -> None:
    """Let everything happen, and the operator see each thing; one that is killed is replaced."""
    for happens in LIFE:
        happens(world)
        for _ in range(3):  # the answer to our own write comes back as a change, too
            try:
                await world.reconcile()
            except Killed:
                world.cache, world.controller = world.restart()


def outcome(world: World) -> dict[str, Any]:
    """Return all that is left, but for what depends on the number of requests and on the seconds."""
    return {path: _plain(obj) for path, obj in world.api.objects.items()}


def parts(left: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is left, and the Events apart."""
    return (
        {path: obj for path, obj in left.items() if "/events/" not in path},
        {path: obj for path, obj in left.items() if "/events/" in path},
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        volatile = ("resourceVersion", "uid", "jobUid", "lastTransitionTime", "firstTimestamp", "lastTimestamp")
        return {name: _plain(each) for name, each in value.items() if name not in volatile}
    return [_plain(each) for each in value] if isinstance(value, list) else value


async def test_a_crash_at_any_write_changes_nothing_in_the_end() -> None:
    reference = Fate()
    async with cluster(reference) as world:
        await live(world)
        assert world.status["phase"] == "Succeeded"
        assert (world.status["attempts"], world.status["preemptions"], world.status["activeSeconds"]) == (3, 1, 180)
        expected, events = parts(outcome(world))
    assert len(reference.writes) > 20
    for number in range(len(reference.writes)):
        for arrives in (False, True):
            fate = Fate(number, arrives)
            async with cluster(fate) as world:
                await live(world)
                what = f"killed {'after' if arrives else 'before'} write {number}: {fate.writes[number]}"
                left, told = parts(outcome(world))
                assert left == expected, what
                # An Event that was to follow a write may be lost, never doubled or made up: conditions have it all.
                assert told.items() <= events.items(), what
                assert len(told) >= len(events) - 2, what
                assert world.made(JOB) == 2, what
