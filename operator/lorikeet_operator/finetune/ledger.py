"""Counts a run's attempts: how many there were, how long they ran, which were interrupted (pure).

Pods come and go, so what has been counted is kept in status, with the time of the newest pod that it holds: a Job has
one pod at a time (`podReplacementPolicy: Failed`), so those that are older are in it. What began and ended while no
operator was there is not counted: a run must not end by a deadline that it may not have reached.
"""

from datetime import datetime
from typing import Any

from lorikeet_api.finetunejob import FineTuneJobStatus
from lorikeet_operator.finetune.observe import has_ended, is_preempted, trainer_state


def count(
    status: FineTuneJobStatus, pods: list[dict[str, Any]], *, stopped: bool, end: str | None = None
) -> FineTuneJobStatus:
    """Return `status` with what `pods` add to its attempts, preemptions and active seconds.

    `stopped`: the batch Job is suspended or deleted, so a pod that was told to stop was not preempted.
    `end`: when the batch Job ended, if it has.
    """
    attempts, preemptions, seconds, counted = status.attempts, status.preemptions, status.active_seconds, status.counted
    pods = sorted(pods, key=_made)
    if stopped:
        newest = max([counted.started_until, *map(_made, pods)])
        counted = counted.model_copy(update={"stopped_until": newest})
    if counted.started_until > counted.ended_until and counted.started_until not in map(_made, pods):
        seconds += _unseen(status, pods, end)
        # A failed pod stays with its Job: one that is gone was removed, as by a drain.
        preemptions += end is None and counted.started_until > counted.stopped_until
        counted = counted.model_copy(update={"ended_until": counted.started_until})
    for pod in pods:
        made = _made(pod)
        state = trainer_state(pod)
        if (ran := state.get("running") or state.get("terminated")) and made > counted.started_until:
            attempts += 1
            counted = counted.model_copy(update={"started_until": made, "began": str(ran.get("startedAt") or made)})
        if has_ended(pod) and made > counted.ended_until:
            seconds += _seconds(state.get("terminated") or {})
            preemptions += is_preempted(pod) and made > counted.stopped_until
            counted = counted.model_copy(update={"ended_until": made})
    update = {"attempts": attempts, "preemptions": preemptions, "active_seconds": seconds, "counted": counted}
    return status.model_copy(update=update)


def active_seconds(status: FineTuneJobStatus, pods: list[dict[str, Any]], now: datetime) -> float:
    """Return how long the trainer has run so far, the attempt that is running now included."""
    running = [state["running"] for pod in pods if "running" in (state := trainer_state(pod))]
    return status.active_seconds + sum((now - _time(state["startedAt"])).total_seconds() for state in running)


def _unseen(status: FineTuneJobStatus, pods: list[dict[str, Any]], end: str | None) -> int:
    """Return how long an attempt ran that ended and was removed while nobody looked, as far as anything tells."""
    began = status.counted.began or status.counted.started_until
    told = status.progress.updated_time if status.progress is not None else began
    # What it told itself is surest; its successor is made when it has ended, or later, where a quota is used up.
    later = [made for made in map(_made, pods) if made > status.counted.started_until]
    until = told if told > began else min([*later, *([end] if end else [])], default=began)
    return max(0, round((_time(until) - _time(began)).total_seconds()))


def _made(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["creationTimestamp"])


def _seconds(ended: dict[str, Any]) -> int:
    began, end = ended.get("startedAt"), ended.get("finishedAt")
    return round((_time(end) - _time(began)).total_seconds()) if began and end else 0


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
