"""What the cluster says about a run's batch Job: from the cache, and past it where the cache cannot know."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from lorikeet_api import names
from lorikeet_operator.finetune.observe import (
    UNPREPARED,
    Observation,
    final_condition,
    is_prepared_by_node,
    live,
    newest,
)
from lorikeet_operator.finetune.patience import NOT_STARTED, age
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import NotFound
from lorikeet_operator.kube.kinds import EVENT, JOB, POD, Key, Object, controller_uid, key_of, label_of, uid_of

OURS: Final = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
"""Selects what Lorikeet makes."""


def without_template(job: Object) -> Object:
    """Return a batch Job as the cache keeps it: its pod's template is never read again."""
    return {**job, "spec": {name: value for name, value in (job.get("spec") or {}).items() if name != "template"}}


def pod_at_work(pod: Object) -> Object:
    """Return a pod as the cache keeps it: who owns it, where it is, how it is; little of what is written on it."""
    spec = pod.get("spec") or {}
    containers = [{"name": each["name"], "image": each.get("image", "")} for each in spec.get("containers") or []]
    kept = {"containers": containers} | ({"nodeName": spec["nodeName"]} if spec.get("nodeName") else {})
    metadata = {name: value for name, value in pod["metadata"].items() if name != "annotations"}
    told = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_WANTED)
    if told is not None:
        metadata["annotations"] = {names.ANNOTATION_WANTED: told}
    return {**pod, "metadata": metadata, "spec": kept}


@dataclass(frozen=True)
class Ask:
    """What to look for among the Events, where nothing else tells why a Job has no prepared pod."""

    about: Object
    reasons: frozenset[str]
    since: str = ""
    """RFC 3339 time; older ones tell of an earlier attempt."""


@dataclass(frozen=True)
class Asked:
    """How a task of the agent stands."""

    child: Object
    """Its batch Job."""
    observation: Observation
    unexplained: bool
    """Whether nothing but an Event would tell why it does not go on."""

    @property
    def ended(self) -> bool:
        """Whether it has, well or badly."""
        return final_condition(self.child) is not None

    @property
    def began(self) -> str:
        """When it was made."""
        return str(self.child["metadata"]["creationTimestamp"])


class Evidence:
    """Reads; writes nothing."""

    def __init__(self, kube: Kube, now: Callable[[], datetime]) -> None:
        self._kube = kube
        self._now = now

    async def job(self, key: Key, uid: str | None) -> Object | None:
        """Return the batch Job that has this uid; the API server is asked where the cache does not have it."""
        child = self._kube.cache.get(JOB, key)
        if child is None or uid_of(child) != uid:
            # A cache that lags must not make a running Job look deleted.
            try:
                child = await self._kube.client.get(JOB, key)
            except NotFound:
                return None
        return child if uid_of(child) == uid else None

    async def pods(self, child: Object) -> list[Object]:
        """Return the pods of a batch Job."""
        namespace, owner = key_of(child).namespace, label_of(child, names.LABEL_FINETUNEJOB) or ""
        pods = _of(child, self._kube.cache.indexed(POD, namespace, owner))
        if final_condition(child) is not None and (not pods or live(pods)):
            # The record is in a pod, and the cache of pods may lag behind that of Jobs.
            selector = f"{OURS},{names.LABEL_FINETUNEJOB}={owner}"
            pods = _of(child, (await self._kube.client.list(POD, namespace, selector)).items)
        return pods

    def left_over(self, job: Key, uid: str | None) -> list[Object]:
        """Return the pods of a run whose batch Job is gone: they go after it, or not, where it left them as orphans."""
        pods = self._kube.cache.indexed(POD, job.namespace, job.name)
        trainers = [pod for pod in pods if label_of(pod, names.LABEL_COMPONENT) == names.TRAINER]
        return [pod for pod in trainers if controller_uid(pod) in (uid, None)]

    async def told(self, ask: Ask | None, child: Object) -> str | None:
        """Return the newest Event that answers `ask` about a batch Job; nothing in the Job's first seconds.

        Each job is without a pod for a moment, and a thousand at once would ask a thousand times.
        """
        if ask is None or age(child["metadata"]["creationTimestamp"], self._now()) < NOT_STARTED:
            return None
        selector = f"involvedObject.uid={uid_of(ask.about)},type=Warning"
        events = (await self._kube.client.list(EVENT, key_of(ask.about).namespace, field_selector=selector)).items
        found = [each for each in events if each.get("reason") in ask.reasons and _event_time(each) >= ask.since]
        latest = max(found, key=_event_time, default=None)
        # A pod that is refused has another name each time: without it, the same trouble has the same words.
        return None if latest is None else re.sub(r'pods "[^"]*"', "the pod", str(latest.get("message", "")))


def unexplained(child: Object, pods: list[Object]) -> Ask | None:
    """Return what to ask the Events of a batch Job: why no pod is made, or what a node waits for."""
    if final_condition(child) is not None or "startTime" not in child.get("status", {}):
        return None  # over, or the Job controller has not come to it yet
    waiting = newest([pod for pod in live(pods) if is_prepared_by_node(pod)])
    if waiting is not None:
        return Ask(waiting, UNPREPARED)
    if live(pods) or any(pod["status"].get("phase") == "Succeeded" for pod in pods):
        return None
    last = newest(pods)
    return Ask(child, frozenset({"FailedCreate"}), last["metadata"]["creationTimestamp"] if last else "")


def _of(child: Object, pods: Iterable[Object]) -> list[Object]:
    return [pod for pod in pods if controller_uid(pod) == uid_of(child)]


def _event_time(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
