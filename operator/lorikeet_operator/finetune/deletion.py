"""What happens when a FineTuneJob goes whose deletionPolicy is Delete: the run ends, then its files are deleted.

A finalizer holds the FineTuneJob until then, but not for ever: after CLEANUP_SECONDS, where the cleaning fails, and in
a namespace that goes itself and takes no new pods, it lets go and says so: in its log, and by an Event.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from lorikeet_api import names
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_operator.finetune.agent import CLEANUP_SECONDS
from lorikeet_operator.finetune.evidence import Asked
from lorikeet_operator.finetune.observe import final_condition, live
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import Forbidden, HeldByOther, Invalid
from lorikeet_operator.kube.kinds import JOB, POD, Object, key_of, label_of
from lorikeet_operator.kube.queue import Requeue

_log = logging.getLogger(__name__)

LOOK_AGAIN: Final = 5.0
FORBIDDEN_AGAIN: Final = 30.0


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

    async def prepare(self, body: Object, job: FineTuneJob) -> Object:
        """Set or remove the finalizer, as the policy is now; return the FineTuneJob as it is then."""
        wanted = job.spec.deletion_policy == "Delete"
        if wanted == is_held(body):
            return body
        return await self._hold(body) if wanted else await self.let_go(body)

    async def let_go(self, body: Object) -> Object:
        """Remove the finalizer."""
        return await self._finalizers(body, [each for each in _finalizers(body) if each != names.FINALIZER])

    async def finish(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Bring the deletion of a FineTuneJob that is held a step further."""
        waited = (self._now() - datetime.fromisoformat(str(job.metadata.deletion_timestamp))).total_seconds()
        if job.status.resolved is None:
            await self.let_go(body)  # nothing was ever written
        elif waited >= CLEANUP_SECONDS:
            await self._give_up(body, job, f"it took longer than {CLEANUP_SECONDS:.0f} s")
        elif await self._still_runs(job):
            return Requeue(LOOK_AGAIN)
        else:
            return await self._clean(body, job, CLEANUP_SECONDS - waited)
        return None

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

    async def _clean(self, body: Object, job: FineTuneJob, left: float) -> Requeue | None:
        try:
            task = await self._cleanup(job)
        except (Forbidden, Invalid, HeldByOther) as error:
            ends = isinstance(error, Forbidden) and "being terminated" in error.message
            if isinstance(error, Forbidden) and not ends:
                return Requeue(min(left, FORBIDDEN_AGAIN))  # a quota, say, which may be free in time
            await self._give_up(body, job, str(error), namespace_ends=ends)
            return None
        if not task.ended:
            return Requeue(min(left, LOOK_AGAIN))
        record = task.observation.record
        if task.observation.phase != "Succeeded":
            await self._give_up(body, job, record.message if record is not None else "the cleaning failed")
            return None
        message = record.message if record is not None else "what the run has written is deleted"
        await self._kube.recorder.event(body, "Normal", "CleanedUp", message)
        await self.let_go(body)
        return None

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


def _is_cleanup(obj: Object) -> bool:
    return label_of(obj, names.LABEL_COMPONENT) == "cleanup"


def _finalizers(body: Object) -> list[str]:
    return list(body["metadata"].get("finalizers") or [])
