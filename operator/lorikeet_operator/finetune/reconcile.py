"""Brings one FineTuneJob a step further: reads the cache, decides, writes. Run any number of times."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Literal

from pydantic import ValidationError

from lorikeet_api import names
from lorikeet_api.conditions import OperatorReason
from lorikeet_api.finetunejob import FineTuneJob, FineTuneJobStatus, Resolved
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.finetune import job as build
from lorikeet_operator.finetune import ledger, limits
from lorikeet_operator.finetune import status as story
from lorikeet_operator.finetune.agent import MEMORY, agent_job
from lorikeet_operator.finetune.deletion import Deletion, is_held
from lorikeet_operator.finetune.evidence import OURS, Ask, Asked, Evidence, pod_at_work, unexplained, without_template
from lorikeet_operator.finetune.observe import CHECKING, Finding, Observation, checking, final_condition, observe
from lorikeet_operator.finetune.resolve import Refused, resolve
from lorikeet_operator.kube.cache import by_label
from lorikeet_operator.kube.controller import Kube, Watch
from lorikeet_operator.kube.errors import Forbidden, HeldByOther, Invalid
from lorikeet_operator.kube.kinds import (
    JOB,
    POD,
    Key,
    Kind,
    Object,
    controller_uid,
    key_of,
    label_of,
    uid_of,
)
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.times import timestamp

FINETUNEJOB: Final = Kind(names.GROUP, names.VERSION, "finetunejobs", "FineTuneJob")
TUNINGPROFILE: Final = Kind(names.GROUP, names.VERSION, "tuningprofiles", "TuningProfile", namespaced=False)

UNMADE: Final = (HeldByOther, Invalid, Forbidden)
"""What keeps an object from being made until somebody changes something."""

FINAL: Final = ("Succeeded", "Failed")
REFUSED_AGAIN: Final = 30.0
"""Seconds until a refusal that no watch would see the end of (a taken name, a quota) is tried again."""
NOT_STARTED: Final = 5.0
"""Seconds until a Job without a pod, or a pod that a node prepares, is looked at again: an Event may tell why."""
PATIENCE: Final = 120.0
"""What those seconds grow to: a thousand jobs that wait for a quota must not ask all the time."""


class FineTuneController:
    """The controller of FineTuneJobs."""

    name = "finetunejob"
    watches = (
        Watch(FINETUNEJOB),
        Watch(TUNINGPROFILE),
        Watch(JOB, label_selector=OURS, index=by_label(names.LABEL_FINETUNEJOB), slim=without_template),
        Watch(POD, label_selector=OURS, index=by_label(names.LABEL_FINETUNEJOB), slim=pod_at_work),
    )

    def __init__(
        self,
        kube: Kube,
        trainer_image: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        agent_image: str = "",
        agent_memory: str = MEMORY,
        endpoint: Callable[[], build.ProgressEndpoint | None] = lambda: None,
    ) -> None:
        """Check runs before they begin, and look for lost records, where an `agent_image` is known to do it with.

        `endpoint` returns where the trainers of runs that begin now tell how far they are.
        """
        self._kube = kube
        self._evidence = Evidence(kube)
        self._trainer_image = trainer_image
        self._agent_image = agent_image
        self._agent_memory = agent_memory
        self._endpoint = endpoint
        self._now = now
        self._deletion = Deletion(kube, FINETUNEJOB, self._clean_up, now)

    def keys_for(self, kind: Kind, obj: Object) -> Iterable[Key]:
        """Return the FineTuneJobs that a change concerns: itself, its owner, or those that wait for a profile."""
        if kind == FINETUNEJOB:
            return [key_of(obj)]
        if kind == TUNINGPROFILE:
            name = obj["metadata"]["name"]
            return [
                key_of(body)
                for body in self._kube.cache.all(FINETUNEJOB)
                if _profile_name(body) == name and not (body.get("status") or {}).get("resolved")
            ]
        owner = label_of(obj, names.LABEL_FINETUNEJOB)
        return [Key(key_of(obj).namespace, owner)] if owner else []

    def phases(self) -> Mapping[str, int]:
        """Return the number of FineTuneJobs by phase, for the metrics."""
        return Counter(
            str((body.get("status") or {}).get("phase") or "Pending") for body in self._kube.cache.all(FINETUNEJOB)
        )

    async def reconcile(self, key: Key) -> Requeue | None:
        """Bring the FineTuneJob `key` a step further."""
        body = self._kube.cache.get(FINETUNEJOB, key)
        if body is None:
            return None  # its children go with it, by their owner references
        going = bool(body["metadata"].get("deletionTimestamp"))
        if going and not is_held(body):
            return None
        try:
            job = FineTuneJob.parse(body)
        except ValidationError as error:
            await (self._deletion.let_go(body) if going else self._unreadable(body, error))
            return None
        if going:
            return await self._deletion.finish(body, job)
        if self._agent_image:
            body = await self._deletion.prepare(body, job)
        if job.status.phase in FINAL:
            await self._keep(body, job)
            return None
        if job.spec.suspend and job.status.job_uid is None:
            await self._write(body, story.suspended(job, self._time()))
            return None
        if job.status.resolved is None:
            resolved = self._resolve(job)
            if isinstance(resolved, Finding):
                await self._write(body, story.refused(job, resolved, self._time()))
                return None
            status = (
                story.checking(job, resolved, CHECKING, self._time())
                if self._agent_image
                else story.accepted(job, resolved, self._time())
            )
            body = await self._write(body, status)
            job = FineTuneJob.parse(body)
        if job.status.job_uid is not None:
            return await self._follow(body, job)
        if self._agent_image and job.status.resolved is not None and job.status.resolved.checked is None:
            return await self._check(body, job, job.status.resolved)
        return await self._start(body, job)

    async def _keep(self, body: Object, job: FineTuneJob) -> None:
        """Look after a run that has ended: the end is the end, whatever becomes of its batch Job and pods."""
        await self._write(body, story.with_findings(job.status, job.metadata.generation, {}, self._time()))
        for child in self._kube.cache.indexed(JOB, job.metadata.namespace or "", job.metadata.name):
            if controller_uid(child) != job.metadata.uid:
                continue
            steered: dict[str, int] = {}
            if uid_of(child) == job.status.job_uid and final_condition(child) is None:
                # We have ended the run; a deadline that has passed makes its Job see that, too.
                steered["activeDeadlineSeconds"] = 1
            if job.spec.ttl_seconds_after_finished is not None:
                # Only now: a Job that went before its end was seen would take the record with it.
                steered["ttlSecondsAfterFinished"] = job.spec.ttl_seconds_after_finished
            await self._kube.writer.patch(JOB, child, {"spec": steered})

    def _resolve(self, job: FineTuneJob) -> Resolved | Finding:
        if job.spec.deletion_policy == "Delete" and not self._agent_image:
            message = (
                "deletionPolicy Delete needs the agent, which this installation does without (agent.enabled of the"
                " chart): set it to Retain, or have the agent enabled"
            )
            return Finding(False, "InvalidSpec", message)
        name = job.spec.profile_ref.name
        profile = self._kube.cache.get(TUNINGPROFILE, Key("", name))
        if profile is None:
            there = sorted(str(key_of(each)) for each in self._kube.cache.all(TUNINGPROFILE))
            message = (
                f"TuningProfile {name!r} does not exist (there: {', '.join(there) or 'none'}): have it created, and the"
                " job starts by itself; or name another one in spec.profileRef of a new job"
            )
            return Finding(False, "ProfileNotFound", message)
        try:
            parsed = TuningProfile.parse(profile)
        except ValidationError as error:
            return Finding(False, "InvalidSpec", f"TuningProfile {name!r} cannot be read: {_sentence(error)}")
        try:
            return resolve(job, parsed, self._trainer_image)
        except Refused as refused:
            return Finding(False, refused.reason, refused.message)
        except ValidationError as error:
            message = f"request and TuningProfile {name!r} do not fit together: {_sentence(error)}"
            return Finding(False, "InvalidSpec", message)

    async def _check(self, body: Object, job: FineTuneJob, resolved: Resolved) -> Requeue | None:
        """Have the run looked at before a GPU is asked for; go on with it, adopt its result, or say what is wrong."""
        try:
            task = await self._ask_agent(job, resolved, "preflight")
        except UNMADE as error:
            return await self._unmade(body, job, error)
        if not task.ended:
            await self._write(body, story.checking(job, resolved, checking(task.observation), self._time()))
            return self._later(task)
        record = task.observation.record
        if record is None:
            # Its pod is gone and so is what it said. The Job goes too, by its ttl, and is then made again.
            await self._kube.writer.patch(JOB, task.child, {"spec": {"ttlSecondsAfterFinished": 0}})
            return Requeue(NOT_STARTED)
        if record.pins is not None:
            contract = resolved.contract.model_copy(update={"pins": record.pins})
            checked = resolved.model_copy(update={"contract": contract, "checked": record.message})
            body = await self._write(body, story.accepted(job, checked, self._time()))
            return await self._start(body, FineTuneJob.parse(body))
        await self._write(body, story.settled(job, record, self._time()))
        return None

    async def _clean_up(self, job: FineTuneJob) -> Asked:
        assert job.status.resolved is not None  # noqa: S101 - else there is nothing to clean
        return await self._ask_agent(job, job.status.resolved, "cleanup")

    async def _ask_agent(self, job: FineTuneJob, resolved: Resolved, task: names.Task) -> Asked:
        """Have a pod of the job's namespace do `task`, and return how that stands."""
        child = await self._kube.writer.create(
            JOB, agent_job(job, resolved, task, self._agent_image, self._agent_memory)
        )
        pods = await self._evidence.pods(child)
        ask = unexplained(child, pods)
        trouble = await self._told(ask, child)
        return Asked(child, observe(child, pods, trouble), ask is not None)

    async def _start(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Make the batch Job, which carries the contract, and note its uid: from then on it is never made again."""
        resolved = job.status.resolved
        assert resolved is not None  # noqa: S101 - `reconcile` has just written it
        endpoint = self._endpoint()
        try:
            child = await self._kube.writer.create(JOB, build.training_job(job, resolved, endpoint))
        except UNMADE as error:
            return await self._unmade(body, job, error)
        made = {"job_uid": uid_of(child), "start_time": child["metadata"]["creationTimestamp"]}
        status = story.accepted(job, resolved, self._time()).model_copy(update=made)
        job = job.model_copy(update={"status": status})
        await self._write(body, story.observed(job, observe(child, []), self._time()))
        return Requeue(NOT_STARTED)

    async def _unmade(self, body: Object, job: FineTuneJob, error: HeldByOther | Invalid | Forbidden) -> Requeue:
        """Say why the objects of the run are not made; it is tried again."""
        if isinstance(error, HeldByOther):
            message = f"{error}: delete or rename it, or create the FineTuneJob under another name"
            return await self._refused(body, job, "NameTaken", message)
        if isinstance(error, Invalid):
            message = (
                f"Kubernetes refuses the objects of the run: {error.message}; correct the request or the TuningProfile,"
                " and create a new FineTuneJob"
            )
            return await self._refused(body, job, "InvalidSpec", message)
        message = (
            f"Kubernetes forbids the objects of the run: {error.message}; it is tried again, so have what forbids"
            " them changed (a quota, a policy, the operator's rights)"
        )
        return await self._refused(body, job, "Forbidden", message)

    async def _refused(self, body: Object, job: FineTuneJob, reason: OperatorReason, message: str) -> Requeue:
        await self._write(body, story.refused(job, Finding(False, reason, message), self._time()))
        return Requeue(REFUSED_AGAIN)

    async def _follow(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Report on the batch Job and its pods, and keep the Job as the spec steers it."""
        key = _child_key(job)
        child = await self._evidence.job(key, job.status.job_uid)
        if child is None:
            await self._write(body, story.job_deleted(job, self._time()))
            return None
        pods = await self._evidence.pods(child)
        ended = final_condition(child) is not None
        held_back = bool(child["spec"].get("suspend"))
        job = job.model_copy(update={"status": ledger.count(job.status, pods, stopped=held_back)})
        if not ended:
            if (verdict := limits.exceeded(job, pods, self._now())) is not None:
                # Its batch Job is ended by the next reconcile, on what is then written: `_keep`.
                await self._write(body, story.stopped(job, verdict.reason, verdict.message, self._time()))
                return None
            steered = {"backoffLimit": job.spec.max_retries, "suspend": job.spec.suspend}
            child = await self._kube.writer.patch(JOB, child, {"spec": steered})
        ask = None if job.spec.suspend else unexplained(child, pods)
        trouble = await self._told(ask, child)
        told = job.status.progress.record if job.status.progress is not None else None
        observation = observe(child, pods, trouble, told)
        if observation.phase == "Succeeded" and observation.record is None and self._agent_image:
            return await self._recover(body, job, observation)
        await self._write(body, story.observed(job, observation, self._time()))
        if ask is not None:
            return Requeue(self._look_again(job.status.start_time, REFUSED_AGAIN if trouble else NOT_STARTED))
        left = None if ended else limits.seconds_left(job, pods, self._now())
        return None if left is None else Requeue(left)

    async def _recover(self, body: Object, job: FineTuneJob, observation: Observation) -> Requeue | None:
        """Find the record of a run that is done in what it has published: its pod went, and the record with it."""
        resolved = job.status.resolved
        assert resolved is not None  # noqa: S101 - a run that is done has begun
        try:
            task = await self._ask_agent(job, resolved, "recover")
        except UNMADE as error:
            await self._write(body, story.recovering(job, Finding(False, "Forbidden", str(error)), self._time()))
            return Requeue(REFUSED_AGAIN)
        if not task.ended:
            await self._write(body, story.recovering(job, checking(task.observation), self._time()))
            return self._later(task)
        found = task.observation.record
        if found is not None and found.reason == "OutputConflict":
            await self._write(body, story.settled(job, found, self._time()))
            return None
        # Whatever kept the agent from reading it: the run is done.
        told = found if found is not None and found.artifacts is not None else None
        await self._write(body, story.observed(job, replace(observation, record=told), self._time()))
        return None

    def _later(self, task: Asked) -> Requeue | None:
        """Return when a task of the agent is looked at again; None where a change of its Job or pod will tell."""
        return Requeue(self._look_again(task.began, NOT_STARTED)) if task.unexplained else None

    async def _told(self, ask: Ask | None, child: Object) -> str | None:
        """Return what Kubernetes says about a batch Job that does not go on; nothing in its first seconds.

        Each job is without a pod for a moment, and a thousand at once would ask a thousand times.
        """
        young = self._age(child["metadata"]["creationTimestamp"]) < NOT_STARTED
        return None if ask is None or young else await self._evidence.told(ask)

    def _look_again(self, began: str | None, at_least: float) -> float:
        """Return the seconds until what does not start is looked at again: as long as it has waited so far."""
        return min(PATIENCE, max(at_least, self._age(began)))

    def _age(self, began: str | None) -> float:
        return (self._now() - datetime.fromisoformat(began)).total_seconds() if began is not None else 0.0

    async def _unreadable(self, body: Object, error: ValidationError) -> None:
        """Report a resource that the API server let in and this version cannot read; the rest of its status stays."""
        status = body.get("status") or {}
        if status.get("phase") in FINAL:
            return
        finding = Finding(False, "InvalidSpec", f"this version of Lorikeet cannot read the job: {_sentence(error)}")
        generation = int(body["metadata"].get("generation") or 0)
        found = story.with_findings(FineTuneJobStatus(), generation, {"Validated": finding}, self._time())
        fresh = found.conditions[0].to_wire()
        others = []
        for each in status.get("conditions") or []:
            if each.get("type") != "Validated":
                others.append(each)
            elif each.get("status") == fresh["status"]:
                fresh["lastTransitionTime"] = each.get("lastTransitionTime")
        merged = {**status, "message": finding.message, "conditions": [fresh, *others]}
        await self._kube.writer.write_status(FINETUNEJOB, body, merged, story.ours)

    async def _write(self, body: Object, status: FineTuneJobStatus) -> Object:
        """Write the status where it differs, then tell what is new in it as Events."""
        written = await self._kube.writer.write_status(FINETUNEJOB, body, status.to_wire(), story.ours)
        if written is body:
            return body
        before = FineTuneJob.parse(body).status
        for kind, reason, message in _news(before, status):
            await self._kube.recorder.event(body, kind, reason, message)
        return written

    def _time(self) -> str:
        return timestamp(self._now())


def _news(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[tuple[Literal["Normal", "Warning"], str, str]]:
    """Return the Events that tell how `after` differs from `before`: each change of a condition's reason, once."""
    known = {condition.type: (condition.status, condition.reason) for condition in before.conditions}
    told: list[tuple[Literal["Normal", "Warning"], str, str]] = []
    for condition in after.conditions:
        if known.get(condition.type) == (condition.status, condition.reason):
            continue
        if condition.reason in ("InProgress", "Waiting", "Checking"):
            continue
        if condition.type in ("Complete", "Failed") and condition.status == "False":
            continue  # the other one of the two tells it
        bad = (condition.status == "True") == (condition.type == "Failed") and condition.reason != "PullingImage"
        told.append(("Warning" if bad else "Normal", condition.reason, condition.message))
    return told


def _child_key(job: FineTuneJob) -> Key:
    return Key(job.metadata.namespace or "", names.training_job(job.metadata.name))


def _profile_name(body: Object) -> str:
    reference = body.get("spec", {}).get("profileRef") or {}
    return str(reference.get("name") or names.DEFAULT_PROFILE)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
