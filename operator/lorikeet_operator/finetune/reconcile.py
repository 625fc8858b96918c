"""Brings one FineTuneJob a step further: reads the cache, decides, writes. Run any number of times."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

from pydantic import ValidationError

from lorikeet_api import names
from lorikeet_api.conditions import FINAL, OperatorReason
from lorikeet_api.finetunejob import FineTuneJob, FineTuneJobStatus, Resolved
from lorikeet_api.request import Refused
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator import watched
from lorikeet_operator.finding import Finding
from lorikeet_operator.finetune import job as build
from lorikeet_operator.finetune import status as story
from lorikeet_operator.finetune.agent import MEMORY
from lorikeet_operator.finetune.deletion import Deletion, is_held
from lorikeet_operator.finetune.evidence import Asked, Evidence
from lorikeet_operator.finetune.follow import Follower
from lorikeet_operator.finetune.observe import CHECKING, checking, final_condition, observe
from lorikeet_operator.finetune.patience import NOT_STARTED, REFUSED_AGAIN
from lorikeet_operator.finetune.resolve import resolve
from lorikeet_operator.finetune.tasks import UNMADE, Tasks
from lorikeet_operator.finetune.tell import Teller
from lorikeet_operator.finetune.turns import Turns
from lorikeet_operator.kinds import FINETUNEJOB, TUNINGPROFILE
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import Forbidden, HeldByOther, Invalid
from lorikeet_operator.kube.kinds import (
    JOB,
    Key,
    Kind,
    Object,
    controller_uid,
    is_deleted,
    key_of,
    label_of,
    uid_of,
)
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.writer import contains

VOID: Final = {"spec": {"ttlSecondsAfterFinished": 0}}
"""Makes a check's Job go once it has ended, to be made anew."""


class FineTuneController:
    """The controller of FineTuneJobs."""

    name = "finetunejob"
    watches = (watched.FINETUNEJOBS, watched.TUNINGPROFILES, watched.JOBS, watched.PODS)

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
        self._now = now
        self._trainer_image = trainer_image
        self._endpoint = endpoint
        evidence = Evidence(kube, now)
        self._tasks = Tasks(kube, evidence, agent_image, agent_memory, now)
        teller = Teller(kube, now)
        self._write, self._write_raw, self._time = teller.write, teller.write_raw, teller.time
        self._follower = Follower(kube, evidence, self._tasks, teller, now)
        self._deletion = Deletion(kube, self._clean_up, now)
        self._turns = Turns(kube.cache)

    def keys_for(self, kind: Kind, obj: Object) -> Iterable[Key]:
        """Return the FineTuneJobs that a change concerns: itself, its owner, or those that wait for it."""
        if kind == FINETUNEJOB:
            return [key_of(obj), *self._turns.changed(obj), *self._made_of(obj)]
        if kind == TUNINGPROFILE:
            name = obj["metadata"]["name"]
            return [
                key_of(body)
                for body in self._kube.cache.all(FINETUNEJOB)
                if _profile_name(body) == name and not (body.get("status") or {}).get("resolved")
            ]
        owner = label_of(obj, names.LABEL_FINETUNEJOB)
        return [Key(key_of(obj).namespace, owner)] if owner else []

    def _made_of(self, obj: Object) -> list[Key]:
        """Return the FineTuneJobs that may wait for the result of one."""
        waiting = self._kube.cache.indexed(FINETUNEJOB, *key_of(obj))
        return [key_of(body) for body in waiting if not (body.get("status") or {}).get("resolved")]

    def phases(self) -> Mapping[str, int]:
        """Return the number of FineTuneJobs by phase, for the metrics."""
        return Counter(_phase(body) for body in self._kube.cache.all(FINETUNEJOB))

    def quiet(self) -> Mapping[str, float]:
        """Return for how many seconds a job has told nothing new: the longest time by phase, for the metrics."""
        oldest: dict[str, str] = {}
        for body in self._kube.cache.all(FINETUNEJOB):
            phase = _phase(body)
            if phase not in FINAL and (news := _newest(body)) is not None:
                oldest[phase] = min(news, oldest.get(phase, news))
        now = self._now()
        return {phase: (now - datetime.fromisoformat(time)).total_seconds() for phase, time in oldest.items()}

    async def reconcile(self, key: Key) -> Requeue | None:
        """Bring the FineTuneJob `key` a step further."""
        body = self._kube.cache.get(FINETUNEJOB, key)
        if body is None:
            return None  # its children go with it, by their owner references
        going = is_deleted(body)
        if going and not is_held(body):
            return None
        try:
            job = FineTuneJob.parse(body)
        except ValidationError as error:
            await (self._deletion.let_go(body) if going else self._unreadable(body, error))
            return None
        if going:
            return await self._deletion.finish(body, job)
        if self._tasks.enabled:
            body = await self._deletion.prepare(body, job)
        if job.status.phase in FINAL:
            await self._keep(body, job)
            return None
        if job.spec.suspend and job.status.job_uid is None:
            self._turns.leave(body)
            await self._write(body, story.suspended(job, self._time()))
            return None
        if job.status.resolved is None:
            resolved = self._resolve(job)
            if isinstance(resolved, Finding):
                await self._write(body, story.refused(job, resolved, self._time()))
                return None
            status = (
                story.checking(job, resolved, CHECKING, self._time())
                if self._tasks.enabled
                else story.accepted(job, resolved, self._time())
            )
            body = await self._write(body, status)
            job = FineTuneJob.parse(body)
        if job.status.job_uid is not None:
            return await self._follower.follow(body, job)
        if (other := self._turns.take(body)) is not None:
            return await self._wait_for(body, job, other)
        if self._tasks.enabled and job.status.resolved is not None and job.status.resolved.checked is None:
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
        if job.spec.deletion_policy == "Delete" and not self._tasks.enabled:
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
            return resolve(job, parsed, self._trainer_image, *self._earlier(job))
        except Refused as refused:
            return Finding(False, refused.reason, refused.message)
        except ValidationError as error:
            message = f"request and TuningProfile {name!r} do not fit together: {_sentence(error)}"
            return Finding(False, "InvalidSpec", message)

    def _earlier(self, job: FineTuneJob) -> Iterable[FineTuneJob]:
        """Yield the FineTuneJobs that one is made of, as far as there are. Raises Refused."""
        for name in job.spec.earlier:
            body = self._kube.cache.get(FINETUNEJOB, Key(job.metadata.namespace or "", name))
            if body is None:
                continue
            try:
                yield FineTuneJob.parse(body)
            except ValidationError as error:
                raise Refused("InvalidSpec", f"FineTuneJob {name} cannot be read: {_sentence(error)}") from error

    async def _wait_for(self, body: Object, job: FineTuneJob, other: Key) -> Requeue:
        """Say whose run this is; what a check has found before is void, since it will find that one's result."""
        preflight = self._kube.cache.get(
            JOB, Key(key_of(body).namespace, names.agent_job(key_of(body).name, "preflight"))
        )
        if preflight is not None and controller_uid(preflight) == uid_of(body):
            await self._kube.writer.patch(JOB, preflight, VOID)
        resolved = job.status.resolved
        assert resolved is not None  # noqa: S101 - else there is no run to share
        status = story.refused(job, _underway(other), self._time())
        await self._write(body, status.model_copy(update={"resolved": resolved.model_copy(update={"checked": None})}))
        return Requeue(REFUSED_AGAIN)

    async def _check(self, body: Object, job: FineTuneJob, resolved: Resolved) -> Requeue | None:
        """Have the run looked at before a GPU is asked for; go on with it, adopt its result, or say what is wrong."""
        try:
            task = await self._tasks.ask(job, resolved, "preflight")
        except UNMADE as error:
            return await self._unmade(body, job, error)
        if not task.ended:
            found = checking(task.observation)
            if found != CHECKING:
                self._turns.leave(body)
            await self._write(body, story.checking(job, resolved, found, self._time()))
            return self._tasks.later(task)
        record = task.observation.record
        if record is None or contains(task.child, VOID):
            # Its pod is gone and so is what it said. The Job goes too, by its ttl, and is then made again.
            await self._kube.writer.patch(JOB, task.child, VOID)
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
        return await self._tasks.ask(job, job.status.resolved, "cleanup")

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
        self._turns.leave(body)
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

    async def _unreadable(self, body: Object, error: ValidationError) -> None:
        """Report a resource that the API server let in and this version cannot read; the rest of its status stays."""
        self._turns.leave(body)
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
        await self._write_raw(body, merged)


def _underway(other: Key) -> Finding:
    message = (
        f"FineTuneJob {other} makes this very run (the same model, data, method and training for the same output): this"
        " one waits for its end and then adopts the result; for a result of its own, create it with another"
        " spec.output.uri"
    )
    return Finding(False, "SameRunUnderway", message)


def _phase(body: Object) -> str:
    return str((body.get("status") or {}).get("phase") or "Pending")


def _newest(body: Object) -> str | None:
    """Return when a job has last told something new; None if it runs and tells nobody how far it is."""
    status = body.get("status") or {}
    progress = status.get("progress")
    if status.get("phase") == "Running" and progress is None:
        return None
    told = [str(each["lastTransitionTime"]) for each in status.get("conditions") or []]
    # All are written in one way, so that the texts are in the order of the times.
    return max(
        [str(body["metadata"]["creationTimestamp"]), *told, *([str(progress["updatedTime"])] if progress else [])]
    )


def _profile_name(body: Object) -> str:
    reference = body.get("spec", {}).get("profileRef") or {}
    return str(reference.get("name") or names.DEFAULT_PROFILE)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
