"""Reads a run's state off its batch Job and pods (pure: objects in, an Observation out)."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from lorikeet_api.conditions import ADVICE_OUT_OF_MEMORY, OperatorReason, Phase
from lorikeet_api.contract import RunRecord
from lorikeet_api.names import TRAINER_CONTAINER

IMAGE_PROBLEMS: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
CONFIG_PROBLEMS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
PULLING: Final = frozenset({"ContainerCreating", "PodInitializing"})
LAST_WORDS: Final = 600
"""Characters of a log tail that a condition quotes."""


@dataclass(frozen=True)
class Finding:
    """One condition as it is now: its status, reason and message."""

    holds: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Observation:
    """What the Job and its pods say."""

    phase: Phase
    scheduled: Finding
    started: Finding
    attempts: int
    record: RunRecord | None = None
    finished_at: str | None = None


def observe(job: dict[str, Any], pods: list[dict[str, Any]], refusal: str | None = None) -> Observation:
    """Return the state of a run.

    Args:
        job: its batch Job.
        pods: the Job's pods, in any order.
        refusal: why Kubernetes refuses to make the pod, where it said so in an Event.
    """
    status = job.get("status", {})
    attempts = sum(int(status.get(counter) or 0) for counter in ("active", "succeeded", "failed"))
    pod = newest(pods)
    for condition in status.get("conditions", []):
        if condition.get("status") == "True" and condition["type"] in ("Complete", "Failed"):
            done = condition["type"] == "Complete"
            ended = newest([pod for pod in pods if _phase(pod) == ("Succeeded" if done else "Failed")])
            return Observation(
                phase="Succeeded" if done else "Failed",
                scheduled=Finding(True, "Bound", _bound(ended)),
                started=Finding(True, "TrainerRunning", "the trainer ran"),
                attempts=max(attempts, 1),
                record=_final_record(condition, ended),
                finished_at=condition.get("lastTransitionTime"),
            )
    if pod is None or _phase(pod) == "Failed":
        return _without_pod(attempts, pod, refusal)
    scheduled = _scheduled(pod)
    if not scheduled.holds:
        return Observation("Pending", scheduled, Finding(False, "Waiting", "waits for a node"), attempts)
    started = _started(pod)
    return Observation("Running" if started.holds else "Starting", scheduled, started, attempts)


def newest(pods: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the pod that was made last (by time, then by name), or None."""
    return max(
        pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"]), default=None
    )


def _phase(pod: dict[str, Any]) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _bound(pod: dict[str, Any] | None) -> str:
    node = pod and pod.get("spec", {}).get("nodeName")
    return f"pod {pod['metadata']['name']} is on node {node}" if pod and node else "the pod was on a node"


def _without_pod(attempts: int, last: dict[str, Any] | None, refusal: str | None) -> Observation:
    waiting = Finding(False, "Waiting", "waits for its pod")
    if refusal is not None:
        message = f"Kubernetes refuses to make the pod: {refusal}"
        return Observation("Pending", Finding(False, "PodRefused", message), waiting, attempts)
    if last is not None and (record := record_of(last)) is not None:
        message = f"the last attempt failed and is made again shortly: {record.message}"
        return Observation("Starting", waiting, Finding(False, record.reason, message), attempts)
    return Observation("Pending", waiting, waiting, attempts)


def _scheduled(pod: dict[str, Any]) -> Finding:
    if pod.get("spec", {}).get("nodeName"):
        return Finding(True, "Bound", _bound(pod))
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = f"no node takes the pod: {condition.get('message', condition.get('reason', ''))}"
            return Finding(False, "Unschedulable", message)
    return Finding(False, "Waiting", "waits for the scheduler")


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses", [])
    state: dict[str, Any] = next((item["state"] for item in statuses if item["name"] == TRAINER_CONTAINER), {})
    return state


def _started(pod: dict[str, Any]) -> Finding:
    state = _container(pod)
    if "running" in state:
        return Finding(True, "TrainerRunning", f"pod {pod['metadata']['name']} trains")
    if "terminated" in state:
        return Finding(True, "TrainerRunning", "the trainer ended")
    waiting = state.get("waiting", {})
    why, text = waiting.get("reason", ""), waiting.get("message", "")
    image = next((item["image"] for item in pod["spec"]["containers"] if item["name"] == TRAINER_CONTAINER), "")
    found: dict[OperatorReason, str] = {
        "ImagePullFailed": f"the trainer image {image} cannot be pulled ({why}: {text}): check its name and tag, and"
        " compute.imagePullSecrets; the pod starts by itself once the image is there",
        "ContainerConfigInvalid": f"the trainer cannot start ({why}: {text}): make what it names in this namespace; the"
        " pod then starts by itself",
        "PullingImage": f"the node prepares the pod (pulls {image}, mounts volumes)",
        "ContainerNotStarted": f"the trainer waits ({why or 'no reason given'}: {text})",
    }
    reason: OperatorReason = (
        "ImagePullFailed"
        if why in IMAGE_PROBLEMS
        else "ContainerConfigInvalid"
        if why in CONFIG_PROBLEMS
        else "PullingImage"
        if why in PULLING or not why
        else "ContainerNotStarted"
    )
    return Finding(False, reason, found[reason])


def record_of(pod: dict[str, Any]) -> RunRecord | None:
    """Return how the pod's trainer says that it ended, or what its exit tells; None if it has not ended."""
    ended = _container(pod).get("terminated")
    if ended is None:
        reason = pod.get("status", {}).get("reason")
        if _phase(pod) == "Failed" and reason:
            text = pod["status"].get("message", "")
            return RunRecord(reason="InternalError", message=f"the pod was ended ({reason}): {text}", retryable=True)
        return None
    message = ended.get("message", "")
    try:
        return RunRecord.model_validate_json(message)
    except ValidationError:
        pass
    if ended.get("reason") == "OOMKilled" or ended.get("exitCode") == 137:
        return RunRecord(
            reason="OutOfMemory", message=f"the container was killed for its memory: {ADVICE_OUT_OF_MEMORY}"
        )
    tail = message[-LAST_WORDS:].strip()
    words = f"; its last words: {tail}" if tail else ""
    return RunRecord(
        reason="InternalError",
        message=f"the trainer ended with code {ended.get('exitCode')} and left no record{words}",
        retryable=True,
    )


def _final_record(condition: dict[str, Any], pod: dict[str, Any] | None) -> RunRecord | None:
    """Return the record of the pod that decided; for a failed Job without one, what the Job says."""
    record = record_of(pod) if pod is not None else None
    if condition["type"] == "Complete":
        return record
    if record is None:
        text = condition.get("message") or condition.get("reason", "")
        return RunRecord(reason="InternalError", message=f"the batch Job failed and no pod is left to ask: {text}")
    if condition.get("reason") == "BackoffLimitExceeded" and record.retryable:
        message = f"every attempt failed, maxRetries is used up; the last one: {record.message}"
        return record.model_copy(update={"message": message})
    return record
