"""Brings one FineTuneJob a step further: reads the cache, decides, writes. Run any number of times."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
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
from lorikeet_operator.finetune.observe import (
    UNPREPARED,
    Finding,
    final_condition,
    is_prepared_by_node,
    live,
    newest,
    observe,
)
from lorikeet_operator.finetune.resolve import Refused, resolve
from lorikeet_operator.kube.cache import by_label
from lorikeet_operator.kube.controller import Kube, Watch
from lorikeet_operator.kube.errors import Forbidden, HeldByOther, Invalid, NotFound
from lorikeet_operator.kube.kinds import (
    CONFIG_MAP,
    EVENT,
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
OURS: Final = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"

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
        Watch(JOB, label_selector=OURS, index=by_label(names.LABEL_FINETUNEJOB)),
        Watch(POD, label_selector=OURS, index=by_label(names.LABEL_FINETUNEJOB)),
    )

    def __init__(self, kube: Kube, trainer_image: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._kube = kube
        self._trainer_image = trainer_image
        self._now = now

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
        if body is None or body["metadata"].get("deletionTimestamp"):
            return None  # its children go with it, by their owner references
        try:
            job = FineTuneJob.parse(body)
        except ValidationError as error:
            await self._unreadable(body, error)
            return None
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
            body = await self._write(body, story.accepted(job, resolved, self._time()))
            job = FineTuneJob.parse(body)
        if job.status.job_uid is None:
            return await self._start(body, job)
        return await self._follow(body, job)

    async def _keep(self, body: Object, job: FineTuneJob) -> None:
        """Look after a run that has ended: the end is the end, whatever becomes of its batch Job and pods."""
        await self._write(body, story.with_findings(job.status, job.metadata.generation, {}, self._time()))
        child = self._kube.cache.get(JOB, _child_key(job))
        if child is None or uid_of(child) != job.status.job_uid:
            return
        steered: dict[str, int] = {}
        if final_condition(child) is None:
            # We have ended the run; a deadline that has passed makes its Job see that, too.
            steered["activeDeadlineSeconds"] = 1
        if job.spec.ttl_seconds_after_finished is not None:
            # Only now: a Job that went before its end was seen would take the record with it.
            steered["ttlSecondsAfterFinished"] = job.spec.ttl_seconds_after_finished
        await self._kube.writer.patch(JOB, child, {"spec": steered})

    def _resolve(self, job: FineTuneJob) -> Resolved | Finding:
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

    async def _start(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Make the contract and the batch Job, and note the Job's uid: from then on it is never made again."""
        resolved = job.status.resolved
        assert resolved is not None  # noqa: S101 - `reconcile` has just written it
        try:
            await self._kube.writer.create(CONFIG_MAP, build.config_map(job, resolved))
            child = await self._kube.writer.create(JOB, build.training_job(job, resolved))
        except HeldByOther as error:
            message = f"{error}: delete or rename it, or create the FineTuneJob under another name"
            return await self._refused(body, job, "NameTaken", message)
        except Invalid as error:
            message = (
                f"Kubernetes refuses the objects of the run: {error.message}; correct the request or the TuningProfile,"
                " and create a new FineTuneJob"
            )
            return await self._refused(body, job, "InvalidSpec", message)
        except Forbidden as error:
            message = (
                f"Kubernetes forbids the objects of the run: {error.message}; it is tried again, so have what forbids"
                " them changed (a quota, a policy, the operator's rights)"
            )
            return await self._refused(body, job, "Forbidden", message)
        made = {"job_uid": uid_of(child), "start_time": child["metadata"]["creationTimestamp"]}
        status = story.accepted(job, resolved, self._time()).model_copy(update=made)
        job = job.model_copy(update={"status": status})
        await self._write(body, story.observed(job, observe(child, []), self._time()))
        return Requeue(NOT_STARTED)

    async def _refused(self, body: Object, job: FineTuneJob, reason: OperatorReason, message: str) -> Requeue:
        await self._write(body, story.refused(job, Finding(False, reason, message), self._time()))
        return Requeue(REFUSED_AGAIN)

    async def _follow(self, body: Object, job: FineTuneJob) -> Requeue | None:
        """Report on the batch Job and its pods, and keep the Job as the spec steers it."""
        key = _child_key(job)
        child = self._kube.cache.get(JOB, key)
        if child is None or uid_of(child) != job.status.job_uid:
            child = await self._read_job(key)
        if child is None or uid_of(child) != job.status.job_uid:
            await self._write(body, story.job_deleted(job, self._time()))
            return None
        pods = self._pods(child, self._kube.cache.indexed(POD, key.namespace, job.metadata.name))
        ended = final_condition(child) is not None
        if ended and len(live(pods)) == len(pods):
            # The record is in a pod, and the cache of pods may lag behind that of Jobs.
            pods = self._pods(child, await self._read_pods(key.namespace, job))
        held_back = bool(child["spec"].get("suspend"))
        job = job.model_copy(update={"status": ledger.count(job.status, pods, stopped=held_back)})
        if not ended:
            if (verdict := limits.exceeded(job, pods, self._now())) is not None:
                # Its batch Job is ended by the next reconcile, on what is then written: `_keep`.
                await self._write(body, story.stopped(job, verdict.reason, verdict.message, self._time()))
                return None
            steered = {"backoffLimit": job.spec.max_retries, "suspend": job.spec.suspend}
            child = await self._kube.writer.patch(JOB, child, {"spec": steered})
        ask = None if ended or job.spec.suspend else _unexplained(child, pods)
        trouble = await self._told(ask) if ask is not None else None
        await self._write(body, story.observed(job, observe(child, pods, trouble), self._time()))
        if ask is not None:
            return Requeue(self._look_again(job, REFUSED_AGAIN if trouble else NOT_STARTED))
        left = None if ended else limits.seconds_left(job, pods, self._now())
        return None if left is None else Requeue(left)

    def _look_again(self, job: FineTuneJob, at_least: float) -> float:
        """Return the seconds until a run that does not start is looked at again: as long as it has waited so far."""
        began = job.status.start_time
        age = (self._now() - datetime.fromisoformat(began)).total_seconds() if began is not None else 0.0
        return min(PATIENCE, max(at_least, age))

    async def _read_job(self, key: Key) -> Object | None:
        """Ask the API server itself: a cache that lags must not make a running Job look deleted."""
        try:
            return await self._kube.client.get(JOB, key)
        except NotFound:
            return None

    async def _read_pods(self, namespace: str, job: FineTuneJob) -> list[Object]:
        selector = f"{OURS},{names.LABEL_FINETUNEJOB}={job.metadata.name}"
        return (await self._kube.client.list(POD, namespace, selector)).items

    @staticmethod
    def _pods(child: Object, pods: Iterable[Object]) -> list[Object]:
        return [pod for pod in pods if controller_uid(pod) == uid_of(child)]

    async def _told(self, ask: "Ask") -> str | None:
        """Return the newest Event that answers `ask`."""
        selector = f"involvedObject.uid={uid_of(ask.about)},type=Warning"
        events = (await self._kube.client.list(EVENT, key_of(ask.about).namespace, field_selector=selector)).items
        found = [each for each in events if each.get("reason") in ask.reasons and _event_time(each) >= ask.since]
        latest = max(found, key=_event_time, default=None)
        # A pod that is refused has another name each time: without it, the same trouble has the same words.
        return None if latest is None else re.sub(r'pods "[^"]*"', "the pod", str(latest.get("message", "")))

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
        await self._kube.writer.write_status(FINETUNEJOB, body, merged)

    async def _write(self, body: Object, status: FineTuneJobStatus) -> Object:
        """Write the status where it differs, then tell what is new in it as Events."""
        before = FineTuneJob.parse(body).status
        written = await self._kube.writer.write_status(FINETUNEJOB, body, status.to_wire())
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
        if condition.reason in ("InProgress", "Waiting"):
            continue
        if condition.type in ("Complete", "Failed") and condition.status == "False":
            continue  # the other one of the two tells it
        bad = (condition.status == "True") == (condition.type == "Failed") and condition.reason != "PullingImage"
        told.append(("Warning" if bad else "Normal", condition.reason, condition.message))
    return told


@dataclass(frozen=True)
class Ask:
    """What to look for among the Events, where nothing else tells why a Job has no prepared pod."""

    about: Object
    reasons: frozenset[str]
    since: str = ""
    """RFC 3339 time; older ones tell of an earlier attempt."""


def _unexplained(child: Object, pods: list[Object]) -> Ask | None:
    """Return what to ask the Events of a run that has not ended: why no pod is made, or what a node waits for."""
    waiting = newest([pod for pod in live(pods) if is_prepared_by_node(pod)])
    if waiting is not None:
        return Ask(waiting, UNPREPARED)
    if live(pods) or any(pod["status"].get("phase") == "Succeeded" for pod in pods):
        return None
    last = newest(pods)
    return Ask(child, frozenset({"FailedCreate"}), last["metadata"]["creationTimestamp"] if last else "")


def _child_key(job: FineTuneJob) -> Key:
    return Key(job.metadata.namespace or "", names.training_job(job.metadata.name))


def _event_time(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _profile_name(body: Object) -> str:
    reference = body.get("spec", {}).get("profileRef") or {}
    return str(reference.get("name") or names.DEFAULT_PROFILE)


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
