"""An operator that is killed at any write leaves a ModelDeployment that ends as if nothing had been.

Each life is lived without a fault; that shows which writes there are. Then it is lived again for each of them, with the
operator killed right before or right after that write has reached the API server, and a fresh one in its place. At no
time do routers lead to an adapter that engines are not told to hold.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import takewhile
from typing import Any

import pytest

from lorikeet_operator.kinds import MODELDEPLOYMENT
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.kinds import CONFIG_MAP
from tests.unit.finetune.test_crashes import Fate, Killed, MortalClient, _plain, parts
from tests.unit.serving.world import (
    BASE,
    FIRST,
    FROM_JOB,
    FROM_URI,
    ROUTER,
    SECOND,
    SPLIT,
    World,
    cluster,
    failed,
    found,
    loaded,
    request,
)

Event = Callable[[World], object]


def everybody_does_as_told(world: World) -> None:
    world.rolls_out()
    world.engines_load()
    world.routers_lead()


def one_refuses(world: World) -> None:
    world.engine(1, loaded("sql-11111111"), loaded("dpo-22222222"), failed("sql-22222222"))


BEGINNING: tuple[Event, ...] = (
    lambda world: world.job(phase="Running"),
    lambda world: world.put(MODELDEPLOYMENT, request(replicas=2, adapters=[FROM_JOB, FROM_URI], routes=SPLIT)),
    lambda world: world.answers(found("dpo")),
    everybody_does_as_told,
    lambda world: world.job(sha256=FIRST),
    everybody_does_as_told,
    everybody_does_as_told,
)
EVEN = [{**SPLIT[0], "variants": [{"name": "a", "adapter": "sql", "weight": 50}, {"name": "b", "weight": 50}]}]


@dataclass(frozen=True)
class Life:
    """What happens to a ModelDeployment, one thing after the other."""

    events: tuple[Event, ...]
    end: Callable[[World], bool]
    """Whether it has ended as such a life does."""
    before: tuple[Event, ...] = BEGINNING
    """What happens while no operator is killed."""


LIVES = {
    "comes to be": Life(
        BEGINNING,
        lambda world: (
            world.led() == {"support": {"a": ("sql-11111111", 90), "b": (BASE, 10)}}
            and world.wanted() == ["dpo-22222222", "sql-11111111"]
        ),
        before=(),
    ),
    "is shifted to another revision, and its weights are changed meanwhile": Life(
        (
            lambda world: world.job(sha256=SECOND),
            lambda world: world.engines_load(0),
            lambda world: world.steer(routes=EVEN),
            lambda world: world.engines_load(),
            lambda world: world.routers_lead(0),
            lambda world: world.routers_lead(busy=["sql-11111111"]),
            lambda world: world.routers_lead(),
        ),
        lambda world: (
            world.led() == {"support": {"a": ("sql-22222222", 50), "b": (BASE, 50)}}
            and world.wanted() == ["dpo-22222222", "sql-22222222"]
            and [each["revision"] for each in world.status["history"]] == ["11111111", "22222222"]
        ),
    ),
    "has a revision that an engine refuses, and goes back": Life(
        (
            lambda world: world.job(sha256=SECOND),
            one_refuses,
            lambda world: world.job(sha256=FIRST),
            lambda world: world.engines_load(),
        ),
        lambda world: (
            world.led()["support"]["a"] == ("sql-11111111", 90) and world.wanted() == ["dpo-22222222", "sql-11111111"]
        ),
    ),
    "gives up its adapters": Life(
        (lambda world: world.steer(adapters=[], routes=[]), everybody_does_as_told),
        lambda world: (world.led(), world.wanted()) == ({"assistant": {"base": (BASE, 1)}}, []),
    ),
}


async def live(world: World, events: tuple[Event, ...]) -> None:
    """Let everything happen, and the operator see each thing; one that is killed is replaced."""
    for happens in events:
        world.now += timedelta(seconds=1)
        happens(world)
        for _ in range(3):  # the answer to our own write comes back as a change, too
            try:
                await world.reconcile(seconds=0)
            except Killed:
                world.restart()
            assert leads_only_to_what_engines_hold(world)


def leads_only_to_what_engines_hold(world: World) -> bool:
    if CONFIG_MAP.path(*ROUTER) not in world.api.objects:
        return True
    served = {served for variants in world.led().values() for served, _ in variants.values()}
    return served == {BASE} or served - {BASE} <= set(world.wanted())


def outcome(world: World) -> tuple[dict[str, Any], Counter[tuple[str, str, str]]]:
    """Return all that is left, but for what depends on the number of requests; and apart from it what was told."""
    return parts({path: _plain(obj) for path, obj in world.api.objects.items()})


def mortal(fate: Fate) -> Callable[..., Client]:
    """Return who makes clients that share a fate."""

    def make(*arguments: Any) -> Client:
        client = MortalClient(*arguments)
        client.fate = fate
        return client

    return make


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
async def test_a_crash_at_any_write_changes_nothing_in_the_end(life: Life) -> None:
    reference = Fate()
    async with cluster(mortal(reference)) as world:
        await live(world, life.before)
        first = len(reference.writes)
        await live(world, life.events)
        assert world.status["phase"] == "Available"
        assert life.end(world)
        expected, said = outcome(world)
    for number in range(first, len(reference.writes)):
        for arrives in (False, True):
            fate = Fate(number, arrives)
            async with cluster(mortal(fate)) as world:
                await live(world, (*life.before, *life.events))
                what = f"killed {'after' if arrives else 'before'} write {number}: {fate.writes[number]}"
                left, told = outcome(world)
                assert left == expected, what
                assert life.end(world), what
                # An Event that was to follow a write may be lost, never doubled or made up: conditions have it all.
                assert told <= said, what
                unsaid = takewhile(lambda write: "/events" in write, reference.writes[number + arrives :])
                assert told.total() >= said.total() - len(list(unsaid)), what
