"""Turns what is known of a ModelDeployment into its status (pure: the clock is an argument)."""

from collections.abc import Mapping, Sequence
from typing import Final

from lorikeet_api import names
from lorikeet_api.conditions import ConditionStatus
from lorikeet_api.modeldeployment import (
    AdapterStatus,
    DeploymentCondition,
    DeploymentConditionType,
    DeploymentPhase,
    HistoryEntry,
    ModelDeployment,
    ModelDeploymentStatus,
)
from lorikeet_api.serving import AGENT_PORT, AgentState
from lorikeet_operator.finding import Finding
from lorikeet_operator.serving.facts import Facts
from lorikeet_operator.serving.plan import Target, routes
from lorikeet_operator.serving.rollout import EngineReplica, RouterReplica, holds

SILENT: Final = 75.0
"""Seconds after which a ready pod that does not answer is not just busy, nor on a node that has just been lost."""
CONDITION_ORDER: Final[tuple[DeploymentConditionType, ...]] = ("Ready", "AdaptersReady", "RouterReady", "Degraded")


def refused(deployment: ModelDeployment, finding: Finding, now: str) -> ModelDeploymentStatus:
    """Return the status of a request that cannot be served as it stands; what is served already stays."""
    # Ready before; or refused before already, or with something else wrong, which says so in Degraded.
    served = any(each.type in ("Ready", "Degraded") and each.status == "True" for each in deployment.status.conditions)
    findings: dict[DeploymentConditionType, Finding] = {
        "Ready": Finding(False, finding.reason, finding.message),
        "Degraded": Finding(served, finding.reason, finding.message),
    }
    status = _with(deployment, deployment.status, findings, now)
    phase: DeploymentPhase = "Degraded" if served else "Failed" if finding.holds else "Pending"
    return status.model_copy(update={"phase": phase, "message": finding.message})


def told(deployment: ModelDeployment, facts: Facts, now: str) -> ModelDeploymentStatus:
    """Return the status of a ModelDeployment whose engines and routers are made."""
    spec = deployment.spec
    adapters = [_adapter(target, facts.replicas) for target in facts.plan.targets.values()]
    adapters_ready = _adapters_ready(deployment, facts)
    router_ready = _router_ready(deployment, facts)
    engines_ready = facts.current and facts.available >= spec.replicas
    findings: dict[DeploymentConditionType, Finding] = {
        "AdaptersReady": adapters_ready,
        "RouterReady": router_ready,
        "Ready": _ready(deployment, facts, engines_ready, adapters_ready, router_ready),
    }
    unready = [each for each in (adapters_ready, router_ready) if not each.holds]
    bad = [each for each in (*facts.troubles, *unready) if _is_fault(each)]
    serving = facts.available > 0 and facts.routers_available > 0
    findings["Degraded"] = (
        Finding(True, bad[0].reason, bad[0].message)
        if bad and serving
        else Finding(False, "AsExpected", "nothing is known to be wrong with what is served")
    )
    status = deployment.status.model_copy(
        update={
            "url": facts.url,
            "ready": f"{min(facts.available, spec.replicas)}/{spec.replicas}",
            "adapters_ready": f"{_everywhere(adapters, facts.replicas)}/{len(spec.adapters)}",
            "replicas": facts.total,
            "selector": facts.selector,
            "model_pin": facts.pin,
            "adapters": adapters,
            "routes": list(facts.routes),
            "history": _history(deployment, facts, now),
        }
    )
    status = _with(deployment, status, findings, now)
    ready = findings["Ready"]
    phase: DeploymentPhase = (
        "Available"
        if ready.holds
        else "Degraded"
        if findings["Degraded"].holds
        else "Failed"
        if not serving and any(each.reason not in NO_ROOM for each in bad)
        else "Progressing"
    )
    return status.model_copy(update={"phase": phase, "message": (bad[0] if bad else ready).message[:4096]})


def _adapter(target: Target, replicas: Sequence[EngineReplica]) -> AdapterStatus:
    return AdapterStatus(
        name=target.name,
        origin=target.origin,
        revision=target.sha256[:8],
        served_name=target.served,
        uri=target.uri,
        sha256=target.sha256,
        ready_replicas=sum(each.state is not None and holds(target.served, each.state) for each in replicas),
    )


def _everywhere(adapters: Sequence[AdapterStatus], replicas: Sequence[EngineReplica]) -> int:
    return sum(bool(replicas) and adapter.ready_replicas >= len(replicas) for adapter in adapters)


WAITING: Final = frozenset({"JobNotFinished", "Resolving", "Loading", "Starting", "Shifting", "ScaledToZero"})
"""Reasons that pass by themselves."""
NO_ROOM: Final = frozenset({"Unschedulable", "WaitsForSurge", "PodRefused"})
"""Reasons that pass once the cluster has room, which it may make by itself."""


def _is_fault(finding: Finding) -> bool:
    return finding.reason not in WAITING


def _adapters_ready(deployment: ModelDeployment, facts: Facts) -> Finding:
    """Return whether every replica has every adapter; else why not, what somebody has to do something about first."""
    if (unheard := _unheard(facts.replicas)) is not None:
        return unheard
    waits: list[Finding] = []
    for name, absent in facts.plan.absent.items():
        found = Finding(False, absent.reason, f"adapter {name}: {absent.message}")
        if absent.holds:
            return found
        waits.append(found)
    for target in facts.plan.targets.values():
        for replica in facts.replicas:
            if replica.state is None or not replica.state.engine or holds(target.served, replica.state):
                continue
            found = _unloaded(target, replica.name, replica.state)
            if _is_fault(found):
                return found
            waits.append(found)
    if waits:
        return waits[0]
    if facts.plan.targets and not any(each.state is not None and each.state.engine for each in facts.replicas):
        return Finding(False, "Starting", "adapters are loaded once an engine answers")
    count = len(deployment.spec.adapters)
    return Finding(True, "Loaded", f"every replica has all {count} adapters" if count else "there are no adapters")


def _unloaded(target: Target, pod: str, state: AgentState) -> Finding:
    found = next((each for each in state.adapters if each.served == target.served), None)
    if found is not None and found.reason is not None:
        return Finding(False, found.reason, f"adapter {target.name} on pod {pod}: {found.message}")
    so_far = f": {found.message}" if found is not None and found.message else ""
    return Finding(
        False, "Loading", f"adapter {target.name}: revision {target.served} is being loaded on pod {pod}{so_far}"
    )


def _unheard(replicas: Sequence[EngineReplica | RouterReplica]) -> Finding | None:
    """Return that the agent of a ready pod does not answer the operator."""
    for each in replicas:
        if each.silent >= SILENT:
            message = (
                f"the operator gets no answer from pod {each.name} on port {AGENT_PORT}, though the pod is ready: its"
                " agent hangs, or let the operator's pods reach that port, which a NetworkPolicy may forbid"
            )
            return Finding(False, "AgentUnreachable", message)
    return None


def _router_ready(deployment: ModelDeployment, facts: Facts) -> Finding:
    wanted = deployment.spec.router.replicas
    if facts.routers_available < wanted:
        return Finding(False, "Starting", f"{facts.routers_available} of {wanted} routers are available")
    if not facts.routers_current:
        return Finding(False, "Starting", "routers are being replaced")
    if (unheard := _unheard(facts.routers)) is not None:
        return unheard
    for router in facts.routers:
        if router.state is not None and router.state.refused:
            message = f"the Envoy of pod {router.name} refuses the newest configuration and goes on with the one before"
            return Finding(False, "ConfigurationRefused", f"{message}: its log says why, report that")
    if not facts.settled:
        return Finding(False, "Shifting", "routers take over the newest routes")
    led = {(route.model, each.name): each.served_name for route in facts.routes for each in route.variants}
    for route in routes(deployment):
        for variant in route.variants:
            target = facts.plan.targets.get(variant.adapter or "")
            if target is not None and led.get((route.model, variant.name)) != target.served:
                waits = f"variant {variant.name} of model {route.model} waits until every replica has {target.served}"
                return Finding(False, "Shifting", waits)
    return Finding(True, "Routing", f"{wanted} routers lead requests as the spec says")


def _ready(deployment: ModelDeployment, facts: Facts, engines: bool, adapters: Finding, router: Finding) -> Finding:
    if not engines:
        trouble = facts.troubles[0] if facts.troubles else None
        count = f"{facts.available} of {deployment.spec.replicas} replicas are available"
        if trouble is not None:
            return Finding(False, trouble.reason, f"{count}: {trouble.message}")
        return Finding(False, "Starting", count if facts.current else f"{count}; others are being replaced")
    if deployment.spec.replicas == 0:
        return Finding(False, "ScaledToZero", "spec.replicas is 0, so that nobody answers: raise it")
    for part in (adapters, router):
        if not part.holds:
            return Finding(False, part.reason, part.message)
    return Finding(True, "Serving", f"serves at {facts.url}")


def _history(deployment: ModelDeployment, facts: Facts, now: str) -> list[HistoryEntry]:
    """Return the revisions, of adapters in use, that requests have been led to, the newest of each last."""
    named = {adapter.name for adapter in deployment.spec.adapters}
    led = {variant.served_name for route in facts.routes for variant in route.variants}
    # What is led to though its adapter is named no longer is kept: it says where an engine that starts finds it.
    history = [
        each
        for each in deployment.status.history
        if each.adapter in named or names.served_adapter(each.adapter, each.sha256) in led
    ]
    for target in facts.plan.targets.values():
        newest = next((each for each in reversed(history) if each.adapter == target.name), None)
        if target.served in led and (newest is None or newest.sha256 != target.sha256):
            history.append(
                HistoryEntry(
                    time=now,
                    adapter=target.name,
                    revision=target.sha256[:8],
                    uri=target.uri,
                    sha256=target.sha256,
                    reason=target.origin,
                )
            )
    kept: list[HistoryEntry] = []
    count: dict[str, int] = {}
    for entry in reversed(history):
        count[entry.adapter] = count.get(entry.adapter, 0) + 1
        # The one that is served, and so many before it.
        if count[entry.adapter] <= deployment.spec.revision_history_limit + 1:
            kept.append(entry)
    return kept[::-1]


def _with(
    deployment: ModelDeployment,
    status: ModelDeploymentStatus,
    findings: Mapping[DeploymentConditionType, Finding],
    now: str,
) -> ModelDeploymentStatus:
    """Return `status` with the found conditions set; a condition's time moves only when it flips."""
    generation = deployment.metadata.generation
    held = {condition.type: condition for condition in deployment.status.conditions}
    conditions = dict(held)
    for kind, finding in findings.items():
        holds_now: ConditionStatus = "True" if finding.holds else "False"
        before = held.get(kind)
        conditions[kind] = DeploymentCondition(
            type=kind,
            status=holds_now,
            reason=finding.reason,
            message=finding.message[:4096],
            observed_generation=generation,
            last_transition_time=(
                before.last_transition_time if before is not None and before.status == holds_now else now
            ),
        )
    ordered = [conditions[kind] for kind in CONDITION_ORDER if kind in conditions]
    return status.model_copy(update={"conditions": ordered, "observed_generation": generation})
