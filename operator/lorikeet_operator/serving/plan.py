"""Finds what the adapters of a ModelDeployment are: their content, or why there is none yet (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lorikeet_api import names
from lorikeet_api.contract import servable
from lorikeet_api.modeldeployment import (
    AdapterOrigin,
    AdapterStatus,
    DeployedAdapter,
    ModelDeployment,
    ModelRoute,
    RouteVariant,
)
from lorikeet_api.objectives import Objective
from lorikeet_api.serving import AdapterRevision, Found, Unresolved
from lorikeet_api.training import Method
from lorikeet_operator.finding import Finding


@dataclass(frozen=True)
class Target:
    """An adapter whose content is known."""

    name: str
    origin: str
    """What of the spec this is the content of."""
    uri: str
    sha256: str

    @property
    def served(self) -> str:
        """The name under which engines serve it."""
        return names.served_adapter(self.name, self.sha256)

    @property
    def revision(self) -> AdapterRevision:
        """It, as agents are told of it."""
        return AdapterRevision(served=self.served, uri=self.uri, sha256=self.sha256)


@dataclass(frozen=True)
class Plan:
    """What is to be served, as far as that is known."""

    targets: Mapping[str, Target]
    """By name of the adapter."""
    absent: Mapping[str, Finding]
    """Why the others have no content: `holds` where somebody has to do something."""
    unresolved: list[Unresolved]
    """Those that a pod has to look for."""


def plan(deployment: ModelDeployment, jobs: Mapping[str, dict[str, object]], found: Mapping[str, Found]) -> Plan:
    """Return the plan of a ModelDeployment.

    Args:
        deployment: with the content that was found earlier in its status.
        jobs: FineTuneJobs of its namespace by name, as the API server has them.
        found: what was found of adapters, by `origin`.
    """
    held = {adapter.name: adapter for adapter in deployment.status.adapters}
    targets: dict[str, Target] = {}
    absent: dict[str, Finding] = {}
    unresolved: list[Unresolved] = []
    for adapter in deployment.spec.adapters:
        text = origin(adapter.from_)
        known = held.get(adapter.name)
        target = _held(known) if known is not None and known.origin == text else None
        if adapter.from_.fine_tune_job_ref is not None:
            made = _of_job(adapter, text, jobs.get(adapter.from_.fine_tune_job_ref.name))
            # A job that is gone, or is made anew, takes nothing away.
            target = target or _made_before(deployment, adapter.name, text)
            if isinstance(made, Finding) and target is None:
                absent[adapter.name] = made
            elif isinstance(made, Target):
                target = made
        elif target is None:
            answer = found.get(text) or _served_before(deployment, adapter)
            if answer is None:
                unresolved.append(_to_resolve(adapter))
                absent[adapter.name] = Finding(False, "Resolving", f"{text} is being looked up")
            elif answer.reason:
                absent[adapter.name] = Finding(True, answer.reason, answer.message)
            else:
                uri = (adapter.from_.uri or "").rstrip("/")
                target = Target(adapter.name, text, f"{uri}/{answer.run_id}" if answer.run_id else uri, answer.sha256)
        if target is not None:
            targets[adapter.name] = target
    return Plan(targets, absent, unresolved)


def origin(of: AdapterOrigin) -> str:
    """Return in one line where an adapter comes from."""
    if of.fine_tune_job_ref is not None:
        return f"FineTuneJob {of.fine_tune_job_ref.name}"
    return f"{of.uri}@{of.sha256}" if of.sha256 else str(of.uri)


def routes(deployment: ModelDeployment) -> list[ModelRoute]:
    """Return the routes of the spec; without any, one for each adapter and the resource's name for the base."""
    if deployment.spec.routes:
        return deployment.spec.routes
    base = ModelRoute(model=deployment.metadata.name, variants=[RouteVariant(name="base")])
    adapters = [
        ModelRoute(model=adapter.name, variants=[RouteVariant(name=adapter.name, adapter=adapter.name)])
        for adapter in deployment.spec.adapters
    ]
    return [base, *adapters]


def _held(known: AdapterStatus) -> Target:
    return Target(known.name, known.origin, known.uri, known.sha256)


def _made_before(deployment: ModelDeployment, name: str, text: str) -> Target | None:
    """Return what a job had made when it was served last, where history knows: the job itself may be gone."""
    known = [entry for entry in deployment.status.history if (entry.adapter, entry.reason) == (name, text)]
    return Target(name, text, known[-1].uri, known[-1].sha256) if known else None


def _served_before(deployment: ModelDeployment, adapter: DeployedAdapter) -> Found | None:
    """Return what a pinned URI is, where history knows: going back to it is then as quick as a shift."""
    uri = (adapter.from_.uri or "").rstrip("/")
    for entry in deployment.status.history:
        if entry.sha256 == adapter.from_.sha256 and f"{entry.uri}/".startswith(f"{uri}/"):
            return Found(name=adapter.name, run_id=entry.uri.removeprefix(uri).strip("/"), sha256=entry.sha256)
    return None


def _to_resolve(adapter: DeployedAdapter) -> Unresolved:
    return Unresolved(name=adapter.name, uri=str(adapter.from_.uri), sha256=adapter.from_.sha256)


def _of_job(adapter: DeployedAdapter, text: str, job: dict[str, object] | None) -> Target | Finding:
    if job is None:
        return Finding(True, "JobNotFound", f"there is no {text} in this namespace: create it, or correct the name")
    why = _unservable(job)
    if why is not None:
        return Finding(True, "NotServable", f"{text} makes no adapter for engines ({why}): name another one")
    status = job.get("status")
    status = status if isinstance(status, dict) else {}
    phase, artifacts = status.get("phase") or "Pending", status.get("artifacts")
    if phase == "Succeeded" and artifacts:
        return Target(adapter.name, text, artifacts["uri"], artifacts["sha256"])
    if phase in ("Failed", "Succeeded"):
        message = f"{text} has published nothing ({status.get('message', phase)}): name another one"
        return Finding(True, "JobFailed", message)
    return Finding(False, "JobNotFinished", f"{text} is {phase}: its adapter is served as soon as it has succeeded")


def _unservable(job: dict[str, object]) -> str | None:
    """Return why engines will not take what a job makes, which is told before it has made it."""
    spec = job.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    method, objective = _method(job), spec.get("objective", {"sft": {}})
    try:
        return (
            None
            if method is None
            else servable(Method.model_validate(method), Objective.model_validate(objective)).reason
        )
    except ValidationError:
        return None  # of another version: its manifest will tell


def _method(job: dict[str, Any]) -> Any:
    """Return how a job trains; None if that is still to be decided."""
    resolved = (job.get("status") or {}).get("resolved") or {}
    return (resolved.get("contract") or {}).get("method") or (job.get("spec") or {}).get("method")
