"""Decides which revisions requests are led to, and which ones engines hold meanwhile (pure).

A new revision is loaded everywhere before it gets a request, and an old one is unloaded only when no router may still
have a request on the way to it. Nothing is remembered but what status, ConfigMaps, agents and routers say themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lorikeet_api.modeldeployment import ModelDeployment, ModelRoute, RouteStatus, VariantStatus
from lorikeet_api.serving import AdapterRevision, AgentState, RouterState, WantedAdapters
from lorikeet_operator.serving.plan import Target, routes

S = TypeVar("S", AgentState, RouterState)


@dataclass(frozen=True)
class Replica(Generic[S]):
    """One pod of the engine or of the router, and what its agent says."""

    name: str
    ready: bool
    state: S | None = None
    """None: it does not answer."""
    silent: float = 0.0
    """Seconds for which it has not answered though the pod is ready."""


EngineReplica = Replica[AgentState]
RouterReplica = Replica[RouterState]


@dataclass(frozen=True)
class Told:
    """What engines and routers had been told when they were asked: it may reach them at any time."""

    held: Sequence[AdapterRevision] = ()
    """Revisions that engines are to hold."""
    wanted: str = ""
    """Fingerprint of the engines' file."""
    routed: str = ""
    """Fingerprint of the routers' file."""


def is_loaded(served: str, replicas: Sequence[EngineReplica], wanted: str) -> bool:
    """Return whether every replica that can answer requests can answer for `served`, and one can.

    One that has not read `wanted` yet may be about to unload it.
    """
    if any(replica.ready and (replica.state is None or not replica.state.engine) for replica in replicas):
        return False
    answering = [replica.state for replica in replicas if replica.state is not None and replica.state.engine]
    return bool(answering) and all(state.wanted == wanted and holds(served, state) for state in answering)


def holds(served: str, state: AgentState) -> bool:
    """Return whether a replica has an adapter loaded."""
    return any(each.served == served and each.state == "loaded" for each in state.adapters)


def lead(
    deployment: ModelDeployment, base: str, targets: Mapping[str, Target], replicas: Sequence[EngineReplica], told: Told
) -> list[RouteStatus]:
    """Return where requests are to be led now.

    A variant keeps the revision that it has until the one that it is to have is loaded everywhere; one that is new
    begins with that of its adapter. If there is none, it is left out until then, so that its siblings answer for it.
    """
    before = {(route.model, each.name): each for route in deployment.status.routes for each in route.variants}
    of_adapter = {each.adapter: each for each in before.values() if each.adapter is not None}
    led_to = {each.served_name for each in before.values()}

    def variant(route: ModelRoute, number: int) -> VariantStatus | None:
        wanted = route.variants[number]
        if wanted.adapter is None:
            return VariantStatus(name=wanted.name, served_name=base, weight=wanted.weight)
        target = targets.get(wanted.adapter)
        if target is not None and (target.served in led_to or is_loaded(target.served, replicas, told.wanted)):
            return VariantStatus(
                name=wanted.name, adapter=wanted.adapter, served_name=target.served, weight=wanted.weight
            )
        held = before.get((route.model, wanted.name)) or of_adapter.get(wanted.adapter)
        return None if held is None else held.model_copy(update={"name": wanted.name, "weight": wanted.weight})

    return [
        RouteStatus(
            model=route.model,
            variants=[found for number in range(len(route.variants)) if (found := variant(route, number)) is not None],
        )
        for route in routes(deployment)
    ]


def to_hold(
    deployment: ModelDeployment,
    led: Sequence[RouteStatus],
    targets: Mapping[str, Target],
    told: Told,
    routers: Sequence[RouterReplica],
    routed: str,
) -> WantedAdapters:
    """Return what engines are to hold: the revisions that are wanted, that are led to, and that may be still.

    Args:
        deployment: with where requests were led before in its status, which may be a step behind.
        led: where requests are to be led now.
        targets: the adapters' content.
        told: what engines and routers were told so far.
        routers: the routers, of which each may have requests on the way to what it led to before.
        routed: fingerprint of what the routers are to do.
    """
    wanted = {target.served: target.revision for target in targets.values()}
    known = {revision.served: revision for revision in told.held}
    in_use = {variant.served_name for route in (*led, *deployment.status.routes) for variant in route.variants}
    for router in routers:
        # One that does what it is to do may still be about to do what it was told before.
        if router.state is None or not router.state.routed == told.routed == routed:
            in_use |= known.keys()
        else:
            in_use |= set(router.state.served)
    held = {**{served: known[served] for served in in_use if served in known}, **wanted}
    led_to = {variant.served_name for route in led for variant in route.variants}
    return WantedAdapters(adapters=[held[name] for name in sorted(held)], led=sorted(led_to & held.keys()))


def to_start_with(wanted: WantedAdapters, told: Told) -> WantedAdapters:
    """Return what engines are to hold that are started with their adapters.

    What is superseded stays in their pods until others take their place anyway: none is replaced just to forget.
    """
    served, known = ({revision.served: revision for revision in each} for each in (wanted.adapters, told.held))
    if not served or served.keys() - known.keys():
        return wanted
    return wanted.model_copy(update={"adapters": [known[name] for name in sorted(known)]})
