"""Reads a run's state off its batch Job and pods (pure: objects in, an Observation out)."""

from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from lorikeet_api.conditions import ADVICE_OUT_OF_MEMORY, OperatorReason, Phase
from lorikeet_api.contract import EXIT_PREEMPTED, RunRecord
from lorikeet_api.names import RUN_CONTAINERS, TRAINER_CONTAINER
from lorikeet_operator.finding import Finding

IMAGE_PROBLEMS: Final = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
CONFIG_PROBLEMS: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
PULLING: Final = frozenset({"ContainerCreating", "PodInitializing"})
UNPREPARED: Final = frozenset({"FailedMount", "FailedMapVolume", "FailedAttachVolume", "FailedCreatePodSandBox"})
"""Events of a pod whose containers wait for something that is missing."""
KILLED: Final = 137
"""Exit code of a container that was killed: by the kernel for its memory, or at the end of its grace period."""
LAST_WORDS: Final = 600
"""Characters of a log tail that a condition quotes."""


CHECKING: Final = Finding(False, "Checking", "model, data and output are looked at, before a GPU is asked for")


@dataclass(frozen=True)
class Observation:
    """What the Job and its pods say."""

    phase: Phase
    scheduled: Finding
    started: Finding
    at_work: bool = False
    """Whether a pod is there that has not ended."""
    record: RunRecord | None = None
    finished_at: str | None = None


def observe(
    job: dict[str, Any], pods: list[dict[str, Any]], trouble: str | None = None, told: RunRecord | None = None
) -> Observation:
    """Return the state of a run.

    Args:
        job: its batch Job.
        pods: the Job's pods, in any order.
        trouble: what Kubernetes said in an Event: why it refuses to make the pod, or why the node cannot
            prepare the one that there is.
        told: the record that the run has told on the way, for the case that its pod is gone.
    """
    pod = newest(pods)
    condition = final_condition(job)
    if condition is not None:
        done = condition["type"] == "Complete"
        decider = newest([pod for pod in pods if _phase(pod) == ("Succeeded" if done else "Failed")])
        return Observation(
            phase="Succeeded" if done else "Failed",
            scheduled=Finding(True, "Bound", _bound(decider)),
            started=Finding(True, "TrainerRunning", "the trainer ran"),
            record=_final_record(condition, decider, told),
            finished_at=condition.get("lastTransitionTime"),
        )
    if pod is not None and has_failed(pod) and not _made_again(job, pod, pods):
        # The Job says so itself as soon as it has counted the pod.
        return Observation(
            "Running",
            Finding(True, "Bound", _bound(pod)),
            Finding(True, "TrainerRunning", "the trainer ended"),
        )
    if pod is None or has_failed(pod):
        return _without_pod(job, pod, trouble)
    scheduled = _scheduled(pod)
    if not scheduled.holds:
        return Observation("Pending", scheduled, Finding(False, "Waiting", "waits for a node"), at_work=True)
    started = _started(pod)
    if started.reason == "PullingImage" and trouble is not None:
        message = f"the node cannot prepare the pod ({trouble}): make what it names; the pod then starts by itself"
        started = Finding(False, "PodNotPrepared", message)
    return Observation("Running" if started.holds else "Starting", scheduled, started, at_work=True)


def checking(observation: Observation) -> Finding:
    """Return what there is to say of a run that a pod of the agent looks at."""
    for finding in (observation.scheduled, observation.started):
        if not finding.holds and finding.reason not in ("Waiting", "PullingImage"):
            return finding
    return CHECKING


def final_condition(job: dict[str, Any]) -> dict[str, Any] | None:
    """Return the condition with which a batch Job says that it has ended, if it has."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition.get("status") == "True" and condition["type"] in ("Complete", "Failed"):
            found: dict[str, Any] = condition
            return found
    return None


def live(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pods that have not ended."""
    return [pod for pod in pods if not has_ended(pod)]


def has_ended(pod: dict[str, Any]) -> bool:
    """Return whether a pod has ended, well or badly."""
    return _phase(pod) in ("Succeeded", "Failed")


def has_failed(pod: dict[str, Any]) -> bool:
    """Return whether a pod has ended without success."""
    return _phase(pod) == "Failed"


def is_prepared_by_node(pod: dict[str, Any]) -> bool:
    """Return whether the pod has a node that pulls its image or mounts its volumes, and whose Events may tell more."""
    return _scheduled(pod).holds and _started(pod).reason == "PullingImage"


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


def _made_again(job: dict[str, Any], pod: dict[str, Any], pods: list[dict[str, Any]]) -> bool:
    """Return whether the batch Job will replace a failed pod, before it says so itself (`job.training_job`)."""
    if is_preempted(pod):
        return True
    if any(condition["type"] == "FailureTarget" for condition in job.get("status", {}).get("conditions", [])):
        return False
    if (record := record_of(pod)) is not None and not record.retryable:
        return False
    failed = [each for each in pods if has_failed(each) and not is_preempted(each)]
    counted = int(job.get("status", {}).get("failed") or 0)
    return max(len(failed), counted) <= int(job.get("spec", {}).get("backoffLimit", 0))


def is_preempted(pod: dict[str, Any]) -> bool:
    """Return whether a pod that has ended was ended from outside: a drain, a preemption, a deletion."""
    return _is_disrupted(pod) or (trainer_state(pod).get("terminated") or {}).get("exitCode") == EXIT_PREEMPTED


def _is_disrupted(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "DisruptionTarget" and each["status"] == "True" for each in conditions)


def _without_pod(job: dict[str, Any], last: dict[str, Any] | None, trouble: str | None) -> Observation:
    waiting = Finding(False, "Waiting", "waits for its pod")
    if job.get("spec", {}).get("suspend"):
        return Observation("Pending", waiting, waiting)  # whatever stopped its pod: we did
    if trouble is not None:
        message = f"Kubernetes refuses to make the pod: {trouble}"
        return Observation("Pending", Finding(False, "PodRefused", message), waiting)
    if last is not None and (record := record_of(last)) is not None:
        what = "was interrupted" if is_preempted(last) else "failed"
        message = f"the last attempt {what} and is made again shortly: {record.message}"
        return Observation("Starting", waiting, Finding(False, record.reason, message))
    return Observation("Pending", waiting, waiting)


def _scheduled(pod: dict[str, Any]) -> Finding:
    if pod.get("spec", {}).get("nodeName"):
        return Finding(True, "Bound", _bound(pod))
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = f"no node takes the pod: {condition.get('message', condition.get('reason', ''))}"
            return Finding(False, "Unschedulable", message)
    return Finding(False, "Waiting", "waits for the scheduler")


def trainer_state(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the container that leaves a record, as the kubelet tells it; empty before it does."""
    statuses = pod.get("status", {}).get("containerStatuses", [])
    state: dict[str, Any] = next((item["state"] for item in statuses if item["name"] in RUN_CONTAINERS), {})
    return state


def _is_trainers(pod: dict[str, Any]) -> bool:
    return any(container["name"] == TRAINER_CONTAINER for container in pod["spec"]["containers"])


def _started(pod: dict[str, Any]) -> Finding:
    state = trainer_state(pod)
    if "running" in state:
        return Finding(True, "TrainerRunning", f"pod {pod['metadata']['name']} trains")
    if "terminated" in state:
        return Finding(True, "TrainerRunning", "the trainer ended")
    waiting = state.get("waiting", {})
    why, text = waiting.get("reason", ""), waiting.get("message", "")
    image = next((item["image"] for item in pod["spec"]["containers"] if item["name"] in RUN_CONTAINERS), "")
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
    ended = trainer_state(pod).get("terminated")
    if ended is None:
        reason = pod.get("status", {}).get("reason")
        if has_failed(pod) and reason:
            text = pod["status"].get("message", "")
            return RunRecord(reason="InternalError", message=f"the pod was ended ({reason}): {text}", retryable=True)
        return None
    message = ended.get("message", "")
    try:
        return RunRecord.model_validate_json(message)
    except ValidationError:
        pass
    killed = ended.get("exitCode") == KILLED
    if ended.get("reason") != "OOMKilled" and killed and pod["metadata"].get("deletionTimestamp"):
        return RunRecord(
            reason="Preempted",
            message="the pod was deleted, and killed at the end of its grace period: raise"
            " compute.terminationGracePeriodSeconds",
            retryable=True,
        )
    if ended.get("reason") == "OOMKilled" or killed:
        advice = ADVICE_OUT_OF_MEMORY if _is_trainers(pod) else "have agent.memory of the operator's chart raised"
        return RunRecord(reason="OutOfMemory", message=f"the container was killed for its memory: {advice}")
    tail = message[-LAST_WORDS:].strip()
    words = f"; its last words: {tail}" if tail else ""
    return RunRecord(
        reason="InternalError",
        message=f"the trainer ended with code {ended.get('exitCode')} and left no record{words}",
        retryable=True,
    )


def _final_record(condition: dict[str, Any], pod: dict[str, Any] | None, told: RunRecord | None) -> RunRecord | None:
    """Return the record of the pod that decided, else what it told; for a failed Job without, what the Job says."""
    done = condition["type"] == "Complete"
    fits = told is not None and (told.artifacts is not None) == done
    record = record_of(pod) if pod is not None else told if fits else None
    if done:
        return record
    if record is None:
        text = condition.get("message") or condition.get("reason", "")
        return RunRecord(reason="InternalError", message=f"the batch Job failed and no pod is left to ask: {text}")
    if condition.get("reason") == "BackoffLimitExceeded" and record.retryable:
        message = f"every attempt failed; the last one: {record.message}"
        return record.model_copy(update={"message": message})
    return record
