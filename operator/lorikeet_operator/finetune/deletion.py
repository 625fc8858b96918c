"""What happens when a FineTuneJob goes whose deletionPolicy is Delete: the run ends, then its files are deleted.

What a ModelDeployment serves is not deleted before that lets it go, however long that takes: a pod of an engine that
starts later has to fetch it. A finalizer holds the FineTuneJob until all is done. It waits for nothing else without an
end: where run or cleaning take longer than CLEANUP_SECONDS, where the cleaning fails, and in a namespace that goes
itself and takes no new pods, it lets go and says so: in its log, and by an Event.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from lorikeet_api import names
from lorikeet_api.contract import Artifacts
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_operator.finetune.agent import CLEANUP_SECONDS
from lorikeet_operator.finetune.evidence import Asked
from lorikeet_operator.finetune.observe import final_condition, live
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import Forbidden, HeldByOther, Invalid, NotFound
from lorikeet_operator.kube.kinds import JOB, POD, Key, Kind, Object, key_of, label_of
from lorikeet_operator.kube.queue import Requeue

_log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 5.0
FORBIDDEN_AGAIN: Final = 30.0
SERVED_AGAIN: Final = 30.0
"""When a ModelDeployment lets go, its watch tells; whether the namespace goes, nobody does."""
NAMESPACE: Final = Kind("", "v1", "namespaces", "Namespace", namespaced=False)


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
        self._forbidden: dict[Key, datetime] = {}
        """Since when Kubernetes forbids the cleaning of a FineTuneJob."""

    async def prepare(self, body: Object, job: FineTuneJob) -> Object:
        """Set or remove the finalizer, as the policy is now; return the FineTuneJob as it is then."""
        wanted = job.spec.deletion_policy == "Delete"
        if wanted == is_held(body):
            return body
        return await self._hold(body) if wanted else await self.let_go(body)

    async def let_go(self, body: Object) -> Object:
        """Remove the finalizer."""
        self._forbidden.pop(key_of(body), None)
        return await self._finalizers(body, [each for each in _finalizers(body) if each != names.FINALIZER])

    async def finish(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Bring the deletion of a FineTuneJob that is held a step further."""
        resolved = job.status.resolved
        if resolved is None:
            await self.let_go(body)  # nothing was ever written
            return None
        if await self._still_runs(job):
            return await self._wait(body, job, job.metadata.deletion_timestamp)
        if await self._is_needed(body, job, resolved):
            return Requeue(SERVED_AGAIN)
        return await self._clean(body, job)

    async def _is_needed(self, body: Object, job: FineTuneJob, resolved: Resolved) -> bool:
        """Return whether engines may yet fetch what the run has written, and say for whom."""
        cache = self._kube.cache
        contract = resolved.contract
        folder = f"{contract.output_uri.rstrip('/')}/{contract.run_id}"
        # Without the agent nobody serves.
        deployments = cache.all(MODELDEPLOYMENT) if cache.keeps(MODELDEPLOYMENT) else []
        users = sorted(key_of(each) for each in deployments if _serves(each, folder, job.status.artifacts))
        # In a namespace that goes nothing can be cleaned any more, and one of another namespace must not hold it up.
        if not users or await self._namespace_goes(key_of(body).namespace):
            return False
        message = (
            f"{folder} is deleted once it is served no more: let ModelDeployment {', '.join(map(str, users))} name"
            " another adapter, or delete it"
        )
        await self._kube.recorder.event(body, "Warning", "StillServed", message)
        return True

    async def _namespace_goes(self, name: str) -> bool:
        try:
            namespace = await self._kube.client.get(NAMESPACE, Key("", name))
        except (Forbidden, NotFound):
            return False  # rights that are not the chart's
        return is_going(namespace)

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
            since = self._forbidden.setdefault(key_of(body), self._now())
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


def is_going(body: Object) -> bool:
    """Return whether the deletion of an object has been asked for."""
    return bool(body["metadata"].get("deletionTimestamp"))


def _serves(deployment: Object, folder: str, made: Artifacts | None) -> bool:
    """Return whether a ModelDeployment leads requests to what lies in a run's folder, or is to hold it."""
    if is_going(deployment):
        return False
    status = deployment.get("status") or {}
    led = {
        (each.get("adapter"), each["servedName"])
        for route in status.get("routes") or []
        for each in route.get("variants") or []
    }
    if made is not None and any(name == names.served_adapter(adapter, made.sha256) for adapter, name in led if adapter):
        return True  # perhaps of an adapter that the spec no longer has: status knows no folder of it then
    earlier = [
        each
        for each in status.get("history") or []
        if (each["adapter"], names.served_adapter(each["adapter"], each["sha256"])) in led
    ]
    return any(each["uri"] == folder for each in [*(status.get("adapters") or []), *earlier])


def _is_cleanup(obj: Object) -> bool:
    return label_of(obj, names.LABEL_COMPONENT) == "cleanup"


def _finalizers(body: Object) -> list[str]:
    return list(body["metadata"].get("finalizers") or [])
