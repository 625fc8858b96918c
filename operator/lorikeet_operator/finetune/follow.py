"""Follows a run whose batch Job is made: to its end, and past it where Job, pod or record are lost."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from lorikeet_api import names
from lorikeet_api.contract import RunRecord
from lorikeet_api.finetunejob import FineTuneJob, FineTuneJobStatus
from lorikeet_operator.finding import Finding
from lorikeet_operator.finetune import ledger, limits
from lorikeet_operator.finetune import status as story
from lorikeet_operator.finetune.evidence import Evidence, unexplained
from lorikeet_operator.finetune.observe import Observation, checking, final_condition, live, observe
from lorikeet_operator.finetune.patience import NOT_STARTED, REFUSED_AGAIN, age, look_again
from lorikeet_operator.finetune.tasks import UNMADE, Tasks
from lorikeet_operator.finetune.tell import Teller
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import Forbidden
from lorikeet_operator.kube.kinds import JOB, Key, Object, key_of
from lorikeet_operator.kube.queue import Requeue

LOST: Final = Finding(False, "RecordLost", "the run is done and its pod's record is lost")
DELETED: Final = Finding(False, "JobDeleted", "the batch Job of this run was deleted")


class Follower:
    """Reads Job and pods, keeps the Job as the spec steers it, and says how the run stands."""

    def __init__(
        self, kube: Kube, evidence: Evidence, tasks: Tasks, teller: Teller, now: Callable[[], datetime]
    ) -> None:
        self._kube = kube
        self._evidence = evidence
        self._tasks = tasks
        self._write, self._time = teller.write, teller.time
        self._now = now

    async def follow(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Report on the run's batch Job and its pods, and keep the Job as the spec steers it."""
        key = Key(job.metadata.namespace or "", names.training_job(job.metadata.name))
        child = await self._evidence.job(key, job.status.job_uid)
        told = job.status.progress.record if job.status.progress is not None else None
        if child is None:
            return await self._follow_deleted(body, job, told)
        pods = await self._evidence.pods(child)
        end = final_condition(child)
        goes = bool(child["metadata"].get("deletionTimestamp"))
        stopped = goes or bool(child["spec"].get("suspend"))
        ended_at = str(end["lastTransitionTime"]) if end is not None else None
        counted = ledger.count(job.status, pods, stopped=stopped, end=ended_at)
        job = job.model_copy(update={"status": counted})
        if end is None and not goes:
            if (verdict := limits.exceeded(job, pods, self._now())) is not None:
                # Its batch Job is ended by the next reconcile, on what is then written: `_keep`.
                await self._write(body, story.stopped(job, verdict.reason, verdict.message, self._time()))
                return None
            steered = {"backoffLimit": job.spec.max_retries, "suspend": job.spec.suspend}
            child = await self._kube.writer.patch(JOB, child, {"spec": steered})
        ask = None if job.spec.suspend else unexplained(child, pods)
        trouble = await self._evidence.told(ask, child)
        observation = observe(child, pods, trouble, told)
        if observation.phase == "Succeeded" and observation.record is None and self._tasks.enabled:
            return await self._recover(body, job, LOST, observation)
        await self._write(body, story.observed(job, observation, self._time()))
        if ask is not None:
            return Requeue(look_again(job.status.start_time, self._now(), REFUSED_AGAIN if trouble else NOT_STARTED))
        left = None if end is not None else limits.seconds_left(job, pods, self._now())
        return None if left is None else Requeue(left)

    async def _follow_deleted(self, body: Object, job: FineTuneJob, told: RunRecord | None) -> Requeue | None:
        """Say how a run ended whose batch Job somebody deleted: it may have published before."""
        pods = self._evidence.left_over(key_of(body), job.status.job_uid)
        job = job.model_copy(update={"status": ledger.count(job.status, pods, stopped=True)})
        if told is not None and (told.artifacts is not None or not told.retryable):
            await self._write(body, story.settled(job, told, self._time()))
            return None
        if not self._tasks.enabled:
            await self._write(body, story.job_deleted(job, self._time()))
            return None
        if any(map(self._may_publish, pods)):
            stops = Finding(False, "Waiting", "once its pod has ended")
            await self._write(body, story.recovering(job, DELETED, stops, self._time()))
            return Requeue(NOT_STARTED)
        return await self._recover(body, job, DELETED, None)

    def _may_publish(self, pod: Object) -> bool:
        """Return whether a pod is at work and has not been told to be gone by now: its node may be lost."""
        gone_by = pod["metadata"].get("deletionTimestamp")
        return bool(live([pod])) and (gone_by is None or age(gone_by, self._now()) < 0)

    async def _recover(
        self, body: Object, job: FineTuneJob, why: Finding, observation: Observation | None
    ) -> Requeue | None:
        """Find the record of a run in what it has published; `observation`: it is done, its pod went with it."""
        resolved = job.status.resolved
        assert resolved is not None  # noqa: S101 - a run that is done has begun
        try:
            task = await self._tasks.ask(job, resolved, "recover")
        except UNMADE as error:
            if observation is None and not isinstance(error, Forbidden):
                await self._write(body, story.job_deleted(job, self._time(), str(error)))
                return None
            finding = Finding(False, "Forbidden", str(error))
            await self._write(body, story.recovering(job, why, finding, self._time()))
            return Requeue(REFUSED_AGAIN)
        if not task.ended:
            await self._write(body, story.recovering(job, why, checking(task.observation), self._time()))
            return self._tasks.later(task)
        found = task.observation.record
        await self._write(body, self._recovered(job, observation, found))
        return None

    def _recovered(
        self, job: FineTuneJob, observation: Observation | None, found: RunRecord | None
    ) -> FineTuneJobStatus:
        published = found if found is not None and found.artifacts is not None else None
        nothing = found is not None and found.reason == "OutputConflict"
        if observation is None:
            if published is not None:
                return story.settled(job, published, self._time())
            unread = "" if nothing else found.message if found is not None else "its record is lost, too"
            return story.job_deleted(job, self._time(), unread)
        if found is not None and nothing:
            return story.settled(job, found, self._time())
        # Whatever kept the agent from reading it: the run is done.
        return story.observed(job, replace(observation, record=published), self._time())
