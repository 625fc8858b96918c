"""When a run ends though its batch Job would go on: its deadline, its preemptions, what no retry changes (pure)."""

from datetime import datetime
from typing import Any

from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_operator.finding import Finding
from lorikeet_operator.finetune.ledger import active_seconds
from lorikeet_operator.finetune.observe import has_failed, is_preempted, live, newest, record_of


def exceeded(job: FineTuneJob, pods: list[dict[str, Any]], now: datetime) -> Finding | None:
    """Return why a run whose batch Job has not ended is to end, or None; `job.status` counts all of `pods`."""
    deadline, spent = job.spec.active_deadline_seconds, active_seconds(job.status, pods, now)
    if deadline is not None and spent >= deadline:
        message = (
            f"the trainer ran for {spent:.0f} s, activeDeadlineSeconds is {deadline}: create a new job with more, which"
            " goes on from the newest checkpoint, or with fewer training.epochs or training.maxSteps"
        )
        return Finding(True, "DeadlineExceeded", message)
    if job.status.preemptions > job.spec.max_preemptions:
        times = f"{job.status.preemptions} time{'s' if job.status.preemptions > 1 else ''}"
        message = (
            f"the run was interrupted {times}, maxPreemptions is {job.spec.max_preemptions}: create a new job with"
            " more, which goes on from the newest checkpoint; or choose nodes that are not reclaimed so often, or a"
            " higher priorityClassName"
        )
        return Finding(True, "PreemptedTooOften", message)
    last = newest(pods)
    if last is not None and not live(pods) and has_failed(last) and not is_preempted(last):
        record = record_of(last)
        if record is not None and not record.retryable and record.reason == "OutOfMemory":
            return Finding(True, record.reason, record.message)
    return None


def seconds_left(job: FineTuneJob, pods: list[dict[str, Any]], now: datetime) -> float | None:
    """Return the seconds until the deadline of a run that is at work, or None."""
    deadline = job.spec.active_deadline_seconds
    if deadline is None or not live(pods):
        return None
    return max(0.5, deadline - active_seconds(job.status, pods, now))
