"""What happens when a FineTuneJob goes whose deletionPolicy is Delete: the run ends, then its files are deleted.

What a ModelDeployment serves is not deleted before that lets it go, however long that takes: a pod of an engine that
starts later has to fetch it. Nor is what a FineTuneJob trains further, or by, before that has ended. A finalizer holds
the FineTuneJob until all is done. It waits for nothing else without an end: where run or cleaning take longer than
CLEANUP_SECONDS, where the cleaning fails, and in a namespace that goes itself and takes no new pods, it lets go and
says so: in its log, and by an Event.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from lorikeet_api import names
from lorikeet_api.conditions import FINAL
from lorikeet_api.contract import Artifacts, RunContract
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_operator.finetune.agent import CLEANUP_SECONDS, cleanup_name
from lorikeet_operator.finetune.evidence import Asked
from lorikeet_operator.finetune.observe import final_condition, live
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import Forbidden, HeldByOther, Invalid, NotFound
from lorikeet_operator.kube.kinds import (
    JOB,
    NAMESPACE,
    POD,
    Key,
    Object,
    is_deleted,
    key_of,
    label_of,
    uid_of,
)
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.times import timestamp

_log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 5.0
FORBIDDEN_AGAIN: Final = 30.0
SERVED_AGAIN: Final = 10.0
"""Seconds until it is asked again whether what is to be deleted is still served."""


class Deletion:
    """Keeps the finalizer as the policy says, and does what it holds the deletion for."""

    def __init__(
        self,
        kube: Kube,
        cleanup: Callable[[FineTuneJob], Awaitable[Asked]],
        now: Callable[[], datetime],
    ) -> None:
        self._kube = kube
        self._cleanup = cleanup
        self._now = now
        self._forbidden: dict[str, datetime] = {}
        """By uid of a FineTuneJob: since when Kubernetes forbids its cleaning."""

    async def prepare(self, body: Object, job: FineTuneJob) -> Object:
        """Set or remove the finalizer, as the policy is now; return the FineTuneJob as it is then."""
        wanted = job.spec.deletion_policy == "Delete"
        if wanted == is_held(body):
            return body
        return await self._hold(body) if wanted else await self.let_go(body)

    async def let_go(self, body: Object) -> Object:
        """Remove the finalizer."""
        self._forbidden.pop(uid_of(body), None)
        return await self._finalizers(body, [each for each in _finalizers(body) if each != names.FINALIZER])

    async def finish(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Bring the deletion of a FineTuneJob that is held a step further."""
        resolved = job.status.resolved
        if resolved is None:
            await self.let_go(body)  # nothing was ever written
            return None
        if await self._still_runs(job):
            return await self._wait(body, job, job.metadata.deletion_timestamp)
        if not self._is_being_cleaned(job) and await self._is_needed(body, job, resolved):
            self._forbidden.pop(uid_of(body), None)
            return Requeue(SERVED_AGAIN)
        return await self._clean(body, job)

    def _is_being_cleaned(self, job: FineTuneJob) -> bool:
        """Return whether files may be gone already, so that it is too late to serve them."""
        return self._kube.cache.get(JOB, Key(job.metadata.namespace or "", cleanup_name(job))) is not None

    async def _is_needed(self, body: Object, job: FineTuneJob, resolved: Resolved) -> bool:
        """Return whether engines, or later runs, may yet fetch what the run has written, and say for whom."""
        cache = self._kube.cache
        # Without the agent nobody serves.
        deployments = cache.all(MODELDEPLOYMENT) if cache.keeps(MODELDEPLOYMENT) else []
        run = _Run(key_of(body), resolved.contract, job.status.artifacts)
        users = sorted(key_of(each) for each in deployments if not is_deleted(each) and run.is_served_by(each))
        # In a namespace that goes nothing can be cleaned any more, and one of another namespace must not hold it up.
        jobs = cache.all(FINETUNEJOB)
        bases = _bases_of_rewards(jobs)
        later = sorted(key_of(each) for each in jobs if run.is_trained_further_by(each, bases))
        if not (users or later) or await self._namespace_goes(key_of(body).namespace):
            return False
        reason = "StillServed"
        message = (
            f"{run.folder} is deleted once it is served no more: let ModelDeployment {', '.join(map(str, users))} name"
            " another adapter, or delete it"
        )
        if not users:
            reason = "StillTrained"
            message = f"{run.folder} is deleted once FineTuneJob {', '.join(map(str, later))} has ended, which reads it"
        # Once an hour: Events do not last longer, and nothing else says why the deletion waits.
        hour = timestamp(self._now())[: len("2026-11-23T10")]
        await self._kube.recorder.event(body, "Warning", reason, message, hour)
        return True

    async def _namespace_goes(self, name: str) -> bool:
        try:
            namespace = await self._kube.client.get(NAMESPACE, Key("", name))
        except (Forbidden, NotFound):
            return False  # rights that are not the chart's
        return is_deleted(namespace)

    async def _still_runs(self, job: FineTuneJob) -> bool:
        """End the run, and return whether something of it may still be writing."""
        namespace, name = job.metadata.namespace or "", job.metadata.name
        at_work = False
        for child in self._kube.cache.indexed(JOB, namespace, name):
            if _is_cleanup(child) or final_condition(child) is not None or child["spec"].get("suspend"):
                continue
            await self._kube.writer.patch(JOB, child, {"spec": {"activeDeadlineSeconds": 1}})
            at_work = True
        # Pods outlive their Job where the whole family is deleted at once.
        pods = [pod for pod in self._kube.cache.indexed(POD, namespace, name) if not _is_cleanup(pod)]
        return at_work or bool(live(pods))

    async def _clean(self, body: Object, job: FineTuneJob) -> Requeue | None:
        try:
            task = await self._cleanup(job)
        except Forbidden as error:
            ends = "being terminated" in error.message
            since = self._forbidden.setdefault(uid_of(body), self._now())
            if not ends and (left := self._left(since)) > 0:
                return Requeue(min(left, FORBIDDEN_AGAIN))  # a quota, say, which may be free in time
            await self._give_up(body, job, str(error), namespace_ends=ends)
            return None
        except (Invalid, HeldByOther) as error:
            await self._give_up(body, job, str(error))
            return None
        if not task.ended:
            return await self._wait(body, job, task.child["metadata"]["creationTimestamp"])
        record = task.observation.record
        if task.observation.phase != "Succeeded":
            await self._give_up(body, job, record.message if record is not None else "the cleaning failed")
            return None
        message = record.message if record is not None else "what the run has written is deleted"
        await self._kube.recorder.event(body, "Normal", "CleanedUp", message)
        await self.let_go(body)
        return None

    async def _wait(self, body: Object, job: FineTuneJob, began: str | None) -> Requeue | None:
        """Look again soon at what began then, or give up if it has taken too long."""
        left = self._left(datetime.fromisoformat(str(began)))
        if left > 0:
            return Requeue(min(left, LOOK_AGAIN))
        await self._give_up(body, job, f"it took longer than {CLEANUP_SECONDS:.0f} s")
        return None

    def _left(self, began: datetime) -> float:
        return CLEANUP_SECONDS - (self._now() - began).total_seconds()

    async def _give_up(self, body: Object, job: FineTuneJob, why: str, *, namespace_ends: bool = False) -> None:
        for child in self._kube.cache.indexed(JOB, job.metadata.namespace or "", job.metadata.name):
            if _is_cleanup(child) and final_condition(child) is None:
                # It must not come upon what a next job of this name writes.
                await self._kube.writer.patch(JOB, child, {"spec": {"activeDeadlineSeconds": 1}})
        where = job.status.resolved.contract.output_uri if job.status.resolved is not None else "the output"
        message = f"what the run has written stays below {where}: {why}; delete it there if it is not wanted"
        _log.warning("%s: %s", key_of(body), message)
        if namespace_ends:
            # It takes no new Events either: this one lies in `default`, as all about a Namespace do.
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": job.metadata.namespace}}
            about = f"FineTuneJob {job.metadata.name}: {message}"
            await self._kube.recorder.event(namespace, "Warning", "CleanupFailed", about)
        else:
            await self._kube.recorder.event(body, "Warning", "CleanupFailed", message)
        await self.let_go(body)

    async def _hold(self, body: Object) -> Object:
        return await self._finalizers(body, [*_finalizers(body), names.FINALIZER])

    async def _finalizers(self, body: Object, wanted: list[str]) -> Object:
        # With the version: a merge patch replaces the whole list, and others may have theirs in it.
        metadata = {"finalizers": wanted, "resourceVersion": body["metadata"]["resourceVersion"]}
        return await self._kube.writer.patch(FINETUNEJOB, body, {"metadata": metadata})


def is_held(body: Object) -> bool:
    """Return whether a FineTuneJob has the finalizer."""
    return names.FINALIZER in _finalizers(body)


@dataclass(frozen=True)
class _Run:
    """What is to be deleted."""

    key: Key
    """Of the FineTuneJob."""
    contract: RunContract
    made: Artifacts | None

    @property
    def folder(self) -> str:
        """Return where the run has written."""
        return f"{self.contract.output_uri.rstrip('/')}/{self.contract.run_id}"

    def is_served_by(self, deployment: Object) -> bool:
        """Return whether a ModelDeployment names the run, leads requests to what it has written, or is to hold that."""
        spec = deployment["spec"]
        if any(self._is_named_by(key_of(deployment), each) for each in spec.get("adapters") or []):
            return True
        if str(spec["model"]["uri"]).startswith(f"{self.folder}/"):
            return True  # a full fine-tune is a base model
        status = deployment.get("status") or {}
        led = {
            each["servedName"]: each["adapter"]
            for route in status.get("routes") or []
            for each in route.get("variants") or []
            if each.get("adapter")
        }
        held = {each["servedName"]: each["uri"] for each in status.get("adapters") or []}
        earlier = {
            names.served_adapter(each["adapter"], each["sha256"]): each["uri"] for each in status.get("history") or []
        }
        folders = {**{name: earlier.get(name) for name in led}, **held}
        return any(
            uri == self.folder
            # Where nobody knows the folder, the content must do.
            or (uri is None and self.made is not None and name == names.served_adapter(led[name], self.made.sha256))
            for name, uri in folders.items()
        )

    def is_trained_further_by(self, later: Object, bases: Mapping[str, str]) -> bool:
        """Return whether a FineTuneJob that has not ended is made of what the run has written.

        `bases` are those of `_bases_of_rewards`: who reads such a reward model reads its base, too.
        """
        status = later.get("status") or {}
        contract = (status.get("resolved") or {}).get("contract")
        if contract is None or is_deleted(later) or status.get("phase") in FINAL:
            return False
        rewards = (contract.get("objective", {}).get("rlhf") or {}).get("rewards") or []
        sources = [contract["model"], contract.get("start"), *(reward.get("model") for reward in rewards)]
        read = [source["uri"].rstrip("/") for source in sources if source]
        read += [bases[uri] for uri in read if uri in bases]
        return any(f"{uri}/".startswith(f"{self.folder}/") for uri in read)

    def _is_named_by(self, deployment: Key, adapter: Object) -> bool:
        source = adapter.get("from") or {}
        if job := (source.get("fineTuneJobRef") or {}).get("name"):
            return Key(deployment.namespace, job) == self.key
        return str(source.get("uri", "")).rstrip("/") in (self.folder, self.contract.output_uri.rstrip("/"))


def _bases_of_rewards(jobs: Iterable[Object]) -> dict[str, str]:
    """Return the base model of each reward adapter that a FineTuneJob has published, by the adapter's folder."""
    found = {}
    for job in jobs:
        status = job.get("status") or {}
        contract, made = (status.get("resolved") or {}).get("contract"), status.get("artifacts")
        if contract and made and "reward" in contract["objective"] and "full" not in contract["method"]:
            found[made["uri"]] = contract["model"]["uri"]
    return found


def _is_cleanup(obj: Object) -> bool:
    return label_of(obj, names.LABEL_COMPONENT) == "cleanup"


def _finalizers(body: Object) -> list[str]:
    return list(body["metadata"].get("finalizers") or [])
