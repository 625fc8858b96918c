"""Turns what is known of a job into its status (pure: the clock is an argument)."""

from lorikeet_api.conditions import FINAL, Condition, ConditionStatus, ConditionType
from lorikeet_api.contract import RunRecord
from lorikeet_api.finetunejob import FineTuneJob, FineTuneJobStatus, Resolved
from lorikeet_operator.finding import Finding
from lorikeet_operator.finetune.observe import Observation

CONDITION_ORDER: tuple[ConditionType, ...] = (
    "Validated",
    "Suspended",
    "Scheduled",
    "Started",
    "Complete",
    "Failed",
)


def ours(field: str) -> bool:
    """Return whether a field of the status is the reconciler's; the progress endpoint owns the other one."""
    return field != "progress"


def with_findings(
    status: FineTuneJobStatus, generation: int, findings: dict[ConditionType, Finding], now: str
) -> FineTuneJobStatus:
    """Return `status` with the found conditions set; a condition's time moves only when it flips.

    Args:
        status: the status so far.
        generation: generation of the spec that the status speaks of.
        findings: the conditions that are known now; others stay.
        now: RFC 3339 time.
    """
    # The others still hold for the new generation: `kubectl wait` passes over a condition of an older one.
    conditions = {
        condition.type: condition.model_copy(update={"observed_generation": generation})
        for condition in status.conditions
    }
    for kind, finding in findings.items():
        holds: ConditionStatus = "True" if finding.holds else "False"
        before = conditions.get(kind)
        since = before.last_transition_time if before is not None and before.status == holds else now
        conditions[kind] = Condition(
            type=kind,
            status=holds,
            reason=finding.reason,
            message=finding.message[:4096],
            observed_generation=generation,
            last_transition_time=since,
        )
    ordered = [conditions[kind] for kind in CONDITION_ORDER if kind in conditions]
    return status.model_copy(
        update={"conditions": ordered, "observed_generation": generation, "message": _headline(conditions)}
    )


def _headline(conditions: dict[ConditionType, Condition]) -> str:
    """Return the message that a user wants to read first: the failure, else what is waited for, else how it stands."""
    for final in ("Failed", "Complete"):
        if (condition := conditions.get(final)) is not None and condition.status == "True":
            return condition.message
    if (condition := conditions.get("Suspended")) is not None and condition.reason != "Resumed":
        return condition.message
    known = [conditions[kind] for kind in ("Validated", "Scheduled", "Started") if kind in conditions]
    unmet = [condition for condition in known if condition.status != "True"]
    telling = [condition for condition in unmet if condition.reason != "Waiting"]
    return next((condition.message for condition in [*telling, *unmet, *reversed(known)]), "")


def refused(job: FineTuneJob, finding: Finding, now: str) -> FineTuneJobStatus:
    """Return the status of a request that cannot be run as it stands."""
    findings: dict[ConditionType, Finding] = {
        "Validated": finding,
        **_suspension(job, stopped=True),
        "Complete": Finding(False, "InProgress", "has not started"),
        "Failed": Finding(False, "InProgress", "has not started"),
    }
    status = with_findings(job.status, job.metadata.generation, findings, now)
    return status.model_copy(update={"phase": "Pending"})


def accepted(job: FineTuneJob, resolved: Resolved, now: str) -> FineTuneJobStatus:
    """Return the status of a request whose every value is decided."""
    message = f"resolved with TuningProfile {resolved.profile!r}"
    if resolved.checked is not None:
        message = f"{resolved.checked}; {message}"
    if resolved.warnings:
        message += "; unusual: " + "; ".join(resolved.warnings)
    findings: dict[ConditionType, Finding] = {
        "Validated": Finding(True, "Resolved" if resolved.checked is None else "Checked", message),
        "Complete": Finding(False, "InProgress", "has not finished"),
        "Failed": Finding(False, "InProgress", "has not failed"),
    }
    findings |= _suspension(job, stopped=True)
    status = with_findings(job.status, job.metadata.generation, findings, now)
    return status.model_copy(update={"phase": "Pending", "resolved": resolved})


def checking(job: FineTuneJob, resolved: Resolved, finding: Finding, now: str) -> FineTuneJobStatus:
    """Return the status of a job whose every value is decided, and that is being checked in its namespace."""
    findings: dict[ConditionType, Finding] = {
        "Validated": finding,
        **_suspension(job, stopped=True),
        "Complete": Finding(False, "InProgress", "has not finished"),
        "Failed": Finding(False, "InProgress", "has not failed"),
    }
    status = with_findings(job.status, job.metadata.generation, findings, now)
    return status.model_copy(update={"phase": "Validating", "resolved": resolved})


def settled(job: FineTuneJob, record: RunRecord, now: str) -> FineTuneJobStatus:
    """Return the status of a job whose end a record tells and no batch Job: adopted, refused, told before it went."""
    if record.artifacts is None:
        status = stopped(job, record.reason, record.message, now)
        if job.status.job_uid is not None:
            return status  # what has trained was valid
        invalid = Finding(False, record.reason, record.message)
        return with_findings(status, job.metadata.generation, {"Validated": invalid}, now)
    findings: dict[ConditionType, Finding] = {
        "Complete": Finding(True, record.reason, record.message),
        "Failed": Finding(False, record.reason, ""),
    }
    if job.status.job_uid is None:
        findings["Validated"] = Finding(True, record.reason, record.message)
    else:
        findings["Started"] = Finding(True, "TrainerRunning", "the trainer ran")
    status = with_findings(job.status, job.metadata.generation, findings, now)
    result = {"metrics": record.metrics, "artifacts": record.artifacts}
    return status.model_copy(update={"phase": "Succeeded", "completion_time": now, **result})


def recovering(job: FineTuneJob, why: Finding, finding: Finding, now: str) -> FineTuneJobStatus:
    """Return the status of a job whose end nothing tells (`why`), and whose record is looked for (`finding`)."""
    message = f"{why.message}: what it has published is read ({finding.message})"
    lost = Finding(False, why.reason, message)
    findings: dict[ConditionType, Finding] = {"Started": lost, "Complete": lost, **_suspension(job, stopped=True)}
    return with_findings(job.status, job.metadata.generation, findings, now)


def suspended(job: FineTuneJob, now: str) -> FineTuneJobStatus:
    """Return the status of a job that is suspended before anything of it was made."""
    findings: dict[ConditionType, Finding] = {
        **_suspension(job, stopped=True),
        "Complete": Finding(False, "InProgress", "has not started"),
        "Failed": Finding(False, "InProgress", "has not started"),
    }
    return with_findings(job.status, job.metadata.generation, findings, now).model_copy(update={"phase": "Suspended"})


def _suspension(job: FineTuneJob, *, stopped: bool) -> dict[ConditionType, Finding]:
    """Return the condition Suspended: it holds once nothing of the run is at work (`stopped`)."""
    if job.spec.suspend:
        message = "suspended: set spec.suspend to false to go on" if stopped else "the trainer is told to stop"
        return {"Suspended": Finding(stopped, "SuspendedByUser", message)}
    if any(condition.type == "Suspended" for condition in job.status.conditions):
        return {"Suspended": Finding(False, "Resumed", "goes on")}
    return {}


def stopped(job: FineTuneJob, reason: str, message: str, now: str) -> FineTuneJobStatus:
    """Return the status of a job that the operator ends, whatever its batch Job would do."""
    findings: dict[ConditionType, Finding] = {
        "Failed": Finding(True, reason, message),
        "Complete": Finding(False, reason, "the run failed"),
    }
    status = with_findings(job.status, job.metadata.generation, findings, now)
    return status.model_copy(update={"phase": "Failed", "completion_time": now})


def observed(job: FineTuneJob, observation: Observation, now: str) -> FineTuneJobStatus:
    """Return the status of a job whose batch Job exists."""
    findings: dict[ConditionType, Finding] = {
        "Scheduled": observation.scheduled,
        "Started": observation.started,
    }
    done = observation.phase in FINAL
    if not done:
        findings |= _suspension(job, stopped=not observation.at_work)
    asleep = job.spec.suspend and not observation.at_work and not done
    update: dict[str, object] = {"phase": "Suspended" if asleep else observation.phase}
    record = observation.record
    if observation.phase == "Succeeded":
        if record is None or record.artifacts is None:
            where = job.status.resolved.contract.output_uri if job.status.resolved else "the output"
            complete = Finding(
                True, "RecordLost", f"the run is done but its pod's record is lost: read the manifest below {where}"
            )
        else:
            complete = Finding(True, record.reason, record.message)
        findings["Complete"] = complete
        findings["Failed"] = Finding(False, complete.reason, "")
    elif observation.phase == "Failed" and record is not None:
        findings["Failed"] = Finding(True, record.reason, record.message)
        findings["Complete"] = Finding(False, record.reason, "the run failed")
    if done:
        update["completion_time"] = observation.finished_at or now
    if record is not None and record.metrics is not None:
        update["metrics"] = record.metrics
    if record is not None and record.artifacts is not None:
        update["artifacts"] = record.artifacts
    return with_findings(job.status, job.metadata.generation, findings, now).model_copy(update=update)


def job_deleted(job: FineTuneJob, now: str, unread: str = "") -> FineTuneJobStatus:
    """Return the status of a job whose batch Job somebody deleted: it is not trained again.

    `unread`: what kept its output from being read.
    """
    message = "the batch Job of this run was deleted: create a new FineTuneJob to train again"
    if unread:
        message += f"; it adopts what this one may have published, which could not be read ({unread})"
    return stopped(job, "JobDeleted", message, now)
