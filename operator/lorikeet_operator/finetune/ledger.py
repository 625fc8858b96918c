"""Counts a run's attempts: how many there were, how long they ran, which were interrupted (pure).

Pods come and go, so what has been counted is kept in status, with the time of the newest pod that it holds: a Job has
one pod at a time (`podReplacementPolicy: Failed`), so those that are older are in it.
"""

from datetime import datetime
from typing import Any

from lorikeet_api.finetunejob import FineTuneJobStatus
from lorikeet_operator.finetune.observe import has_ended, is_preempted, trainer_state


def count(status: FineTuneJobStatus, pods: list[dict[str, Any]], *, stopped: bool) -> FineTuneJobStatus:
    """Return `status` with what `pods` add to its attempts, preemptions and active seconds.

    `stopped`: we have suspended the batch Job ourselves, so a pod that was told to stop was not preempted.
    """
    attempts, preemptions, seconds, counted = status.attempts, status.preemptions, status.active_seconds, status.counted
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
        made = str(pod["metadata"]["creationTimestamp"])
        if _has_run(pod) and made > counted.started_until:
            attempts += 1
            counted = counted.model_copy(update={"started_until": made})
        if has_ended(pod) and made > counted.ended_until:
            seconds += _seconds(trainer_state(pod).get("terminated") or {})
            preemptions += is_preempted(pod) and not stopped
            counted = counted.model_copy(update={"ended_until": made})
    update = {"attempts": attempts, "preemptions": preemptions, "active_seconds": seconds, "counted": counted}
    return status.model_copy(update=update)


def active_seconds(status: FineTuneJobStatus, pods: list[dict[str, Any]], now: datetime) -> float:
    """Return how long the trainer has run so far, the attempt that is running now included."""
    running = [state["running"] for pod in pods if "running" in (state := trainer_state(pod))]
    return status.active_seconds + sum((now - _time(state["startedAt"])).total_seconds() for state in running)


def _has_run(pod: dict[str, Any]) -> bool:
    state = trainer_state(pod)
    return "running" in state or "terminated" in state


def _seconds(ended: dict[str, Any]) -> int:
    began, end = ended.get("startedAt"), ended.get("finishedAt")
    return round((_time(end) - _time(began)).total_seconds()) if began and end else 0


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
