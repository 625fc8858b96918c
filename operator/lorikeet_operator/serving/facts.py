"""What was found when a ModelDeployment was looked at, from objects and from what agents say (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorikeet_api import names
from lorikeet_api.modeldeployment import ModelDeployment, RouteStatus
from lorikeet_api.serving import AgentState
from lorikeet_operator.finding import Finding
from lorikeet_operator.kube.kinds import Object
from lorikeet_operator.serving.plan import Plan
from lorikeet_operator.serving.rollout import EngineReplica, RouterReplica
from lorikeet_operator.serving.trouble import is_going, refusal, trouble


@dataclass(frozen=True)
class Facts:
    """What the status is told from."""

    plan: Plan
    routes: Sequence[RouteStatus] = ()
    replicas: Sequence[EngineReplica] = ()
    routers: Sequence[RouterReplica] = ()
    available: int = 0
    """Replicas of the engine that are available, as its Deployment says."""
    current: bool = False
    """Whether all of them are as the spec says now."""
    total: int = 0
    """Replicas of the engine that there are."""
    routers_available: int = 0
    routers_current: bool = True
    """Whether all routers are as the spec says now."""
    settled: bool = False
    """Whether every router does what it is told."""
    troubles: Sequence[Finding] = ()
    """What keeps pods from serving."""
    selector: str = ""
    url: str = ""
    pin: str | None = None


def gather(
    deployment: ModelDeployment,
    plan: Plan,
    routes: Sequence[RouteStatus],
    made: Mapping[str, Object],
    pods: Mapping[str, Sequence[Object]],
    replicas: Sequence[EngineReplica],
    routers: Sequence[RouterReplica],
    routed: str,
    unprepared: Finding | None = None,
    *,
    url: str,
    pin: str,
) -> Facts:
    """Return what was found.

    Args:
        deployment: the ModelDeployment.
        plan: what its adapters are.
        routes: where requests are to be led now.
        made: the Deployments of `engine` and `router`, as they are in the cluster.
        pods: those of each.
        replicas: what the agents of engines say.
        routers: what the agents of routers say.
        routed: fingerprint of what the routers are to do.
        unprepared: what a node says that prepares a pod in vain.
        url: where clients reach it.
        pin: what the base model is.
    """
    engine, router = made[names.ENGINE], made[names.ROUTER]
    leading = [each for each in routers if each.ready]
    surging = sum(not is_going(pod) for pod in pods[names.ENGINE]) > deployment.spec.replicas
    found = [
        *map(refusal, (engine, router)),
        *(
            trouble(pod, surging and component == names.ENGINE)
            for component in (names.ENGINE, names.ROUTER)
            for pod in pods[component]
            if not is_going(pod)
        ),
        unprepared,
    ]
    return Facts(
        plan=plan,
        routes=routes,
        replicas=replicas,
        routers=routers,
        available=_count(engine, "availableReplicas"),
        current=_is_current(engine),
        total=_count(engine, "replicas"),
        routers_available=_count(router, "availableReplicas"),
        routers_current=_is_current(router),
        settled=bool(leading) and all(each.state is not None and each.state.routed == routed for each in leading),
        troubles=[each for each in found if each is not None],
        selector=",".join(f"{name}={value}" for name, value in engine["spec"]["selector"]["matchLabels"].items()),
        url=url,
        pin=pin,
    )


def is_moving(facts: Facts, held: Sequence[str]) -> bool:
    """Return whether something is on its way that no watch tells of: adapters, routes, or what is to be forgotten.

    `held`: served names of what engines are to hold, where they forget what is in use no more.
    """
    targets = {target.served for target in facts.plan.targets.values()}
    in_use = targets | {variant.served_name for route in facts.routes for variant in route.variants}
    loading = any(
        each.state is not None and each.state.engine and _is_loading(served, each.state)
        for each in facts.replicas
        for served in targets
    )
    leading = any(each.ready for each in facts.routers)
    return loading or (leading and not facts.settled) or not in_use.issuperset(held)


def are_heard(facts: Facts) -> bool:
    """Return whether the agent of every ready pod has answered."""
    silent = any(each.ready and each.state is None for each in facts.replicas)
    return not silent and not any(each.ready and each.state is None for each in facts.routers)


def _is_loading(served: str, state: AgentState) -> bool:
    """Return whether a replica is at work on an adapter. One that has failed is tried again, but slowly."""
    return not any(each.served == served and each.state != "loading" for each in state.adapters)


def _count(obj: Object, name: str) -> int:
    return int((obj.get("status") or {}).get(name) or 0)


def _is_current(deployment: Object) -> bool:
    """Return whether all replicas of a Deployment are of its newest template."""
    status = deployment.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(deployment["metadata"].get("generation") or 0)
    wanted = int(deployment["spec"].get("replicas") or 0)
    return seen and _count(deployment, "updatedReplicas") == _count(deployment, "replicas") == wanted
