"""Whatever happens in whatever order, no request is led to a revision that an engine is about to forget.

All states that one variant of one adapter can come to are looked at: users change its content to and fro, the operator
looks, is slow, writes one thing after the other and is killed between any two, agents and routers read what they were
told and do it when they come to it, and engines lose what they have loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.serving import AdapterState, AgentState, RouterState
from lorikeet_operator.serving.rollout import EngineReplica, RouterReplica, Told, lead, to_hold
from tests.resources import deployment
from tests.unit.serving.test_rollout import BASE, NEW, OLD, SQL

TARGETS = {each.served: each for each in (OLD, NEW)}
SPEC = deployment(adapters=[SQL], routes=[{"model": "support", "variants": [{"name": "a", "adapter": "sql"}]}])
Names = frozenset[str]
NONE: Names = frozenset()


@dataclass(frozen=True)
class World:
    """One state of all that is at work. A route is the served name that it leads to; empty: nowhere yet."""

    content: str = OLD.served
    """What the adapter is to be."""
    status: str = ""
    """The route that status has."""
    route: str | None = None
    """The route that routers are told; None: nothing yet."""
    held: Names = NONE
    """What engines are told to hold."""
    read: Names = NONE
    """What the engine's agent has read of that."""
    loaded: Names = NONE
    led: str | None = None
    """The route by which the router leads."""
    clusters: Names = NONE
    """What the router may have requests on their way to."""
    seen: "World | None" = None
    """What the operator has seen; None: it has decided, or rests."""
    to_write: tuple[tuple[str, str | Names], ...] = ()
    """The fields of this that it has yet to write."""

    def but(self, field: str, value: Any) -> "World":
        return replace(self, **{field: value})


Found = dict[World, tuple[World, str] | None]
"""States, each with one that is before it, and what has happened between the two."""


def names(route: str | None) -> Names:
    return frozenset({route}) if route else NONE


def others_do(world: World) -> Iterator[tuple[str, World]]:
    """Return what users, agents, engines and routers may do next."""
    for content in TARGETS:
        yield f"a user wants {content}", replace(world, content=content)
    yield "the agent reads", replace(world, read=world.held)
    yield "the agent loads and unloads", replace(world, loaded=world.read)
    yield "the engine is started again", replace(world, loaded=NONE)
    if world.route not in (None, world.led):
        told = replace(world, clusters=world.clusters | names(world.route))
        is_healthy = names(world.route) <= world.loaded
        yield "the router reads", replace(told, led=world.route) if is_healthy else told
    if world.route == world.led:
        yield "the router lets go", replace(world, clusters=names(world.led))


def operator_does(world: World) -> Iterator[tuple[str, World]]:
    """Return what the operator may do next."""
    if world.seen is not None:
        yield "the operator decides", replace(world, seen=None, to_write=decide(world.seen))
    elif world.to_write:
        (field, value), *others = world.to_write
        yield f"the operator writes {field}", replace(world, to_write=tuple(others)).but(field, value)
        yield "the operator is killed", replace(world, to_write=())
    else:
        yield "the operator looks", replace(world, seen=world)


@cache
def decide(seen: World) -> tuple[tuple[str, str | Names], ...]:
    """Return what the operator writes once it has seen this, in the order of `reconcile`."""
    variants = [{"name": "a", "adapter": "sql", "servedName": each, "weight": 1} for each in names(seen.status)]
    status = {"routes": [{"model": "support", "variants": variants}]}
    asks = ModelDeployment.parse({**SPEC.to_wire(), "status": status})
    targets = {"sql": TARGETS[seen.content]}
    adapters = [AdapterState(served=each, state="loaded") for each in sorted(seen.loaded & seen.read)]
    engine = AgentState(wanted=str(sorted(seen.read)), engine=True, draining=False, adapters=adapters)
    router = RouterState(wanted="", routed=str(seen.led), served=sorted(seen.clusters))
    held = [TARGETS[each].revision for each in sorted(seen.held)]
    told = Told(held, wanted=str(sorted(seen.held)), routed=str(seen.route))
    led = lead(asks, BASE, targets, [EngineReplica("p0", True, engine)], told)
    route = "".join(each.served_name for each in led[0].variants)
    wanted = to_hold(asks, led, targets, told, [RouterReplica("r0", True, router)], route)
    return ("route", route), ("held", frozenset(each.served for each in wanted.adapters)), ("status", route)


@pytest.fixture(scope="module")
def all_states() -> Found:
    found: Found = {World(): None}
    queue = [World()]
    for world in queue:
        for what, after in (*others_do(world), *operator_does(world)):
            if after not in found:
                found[after] = (world, what)
                queue.append(after)
    return found


def way_to(world: World, found: Found) -> str:
    steps = []
    while (before := found[world]) is not None:
        world, what = before
        steps.append(what)
    return "\n".join(reversed(steps))


def test_what_a_router_leads_to_is_to_be_held_and_no_agent_has_read_otherwise(all_states: Found) -> None:
    assert len(all_states) > 10_000
    for world in all_states:
        assert names(world.led) <= world.held & world.read, way_to(world, all_states)


def test_all_ends_where_the_spec_wants_it_and_nothing_is_left_over(all_states: Found) -> None:
    for begun in {replace(world, seen=None, to_write=()) for world in all_states}:
        world = begun
        for _ in range(6):
            world = after_a_quiet_round(world)
        ends = names(begun.content)
        assert (world.held, world.loaded, names(world.route), names(world.led)) == (ends, ends, ends, ends)


def after_a_quiet_round(world: World) -> World:
    """Let everybody do what there is to do, once."""
    for field, value in decide(world):
        world = world.but(field, value)
    world = replace(world, read=world.held, loaded=world.held)
    is_healthy = names(world.route) <= world.loaded
    return replace(world, led=world.route, clusters=names(world.route)) if is_healthy else world
