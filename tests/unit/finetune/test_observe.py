"""How a run's state is read off its batch Job and pods."""

import json
from typing import Any

import pytest

from lorikeet_operator.finetune.observe import observe

RECORD = {
    "reason": "Published",
    "message": "published",
    "retryable": False,
    "metrics": {"trainLoss": 0.5},
    "artifacts": {"uri": "s3://a/b", "runId": "r", "revision": "abcdef01", "sha256": "ab" * 32, "sizeBytes": 3},
}


def batch_job(*conditions: dict[str, Any], **counters: int) -> dict[str, Any]:
    return {
        "metadata": {"name": "sql-train"},
        "spec": {"backoffLimit": 3},
        "status": {"conditions": list(conditions), **counters},
    }


def pod(
    phase: str = "Pending", state: dict[str, Any] | None = None, node: str = "n1", name: str = "p0", **status: Any
) -> dict[str, Any]:
    containers = [{"name": "trainer", "state": state}] if state is not None else []
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-11-23T10:00:00Z"},
        "spec": {"nodeName": node, "containers": [{"name": "trainer", "image": "trainer:1"}]},
        "status": {"phase": phase, "containerStatuses": containers, **status},
    }


def ended(code: int, message: object = "", reason: str = "Error") -> dict[str, Any]:
    text = message if isinstance(message, str) else json.dumps(message)
    return {"terminated": {"exitCode": code, "message": text, "reason": reason}}


COMPLETE = {"type": "Complete", "status": "True", "lastTransitionTime": "2026-11-23T10:05:00Z"}
FAILED = {
    "type": "Failed",
    "status": "True",
    "reason": "PodFailurePolicy",
    "message": "policy",
    "lastTransitionTime": "t",
}


def test_a_job_without_pods_is_pending() -> None:
    assert observe(batch_job(), []).phase == "Pending"


def test_why_kubernetes_refuses_the_pod_is_said() -> None:
    seen = observe(batch_job(), [], trouble="exceeded quota: gpus")
    assert (seen.phase, seen.scheduled.reason) == ("Pending", "PodRefused")
    assert "exceeded quota: gpus" in seen.scheduled.message


def test_the_schedulers_words_are_passed_on() -> None:
    waiting = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient gpu."}
    seen = observe(batch_job(active=1), [pod(node="", conditions=[waiting])])
    assert (seen.phase, seen.scheduled.reason) == ("Pending", "Unschedulable")
    assert "3 Insufficient gpu" in seen.scheduled.message


@pytest.mark.parametrize(
    ("why", "reason", "hint"),
    [
        ("ImagePullBackOff", "ImagePullFailed", "trainer:1"),
        ("InvalidImageName", "ImagePullFailed", "check its name"),
        ("CreateContainerConfigError", "ContainerConfigInvalid", "secret not found"),
        ("ContainerCreating", "PullingImage", "prepares the pod"),
    ],
)
def test_a_container_that_does_not_start_says_why(why: str, reason: str, hint: str) -> None:
    seen = observe(batch_job(active=1), [pod(state={"waiting": {"reason": why, "message": "secret not found"}})])
    assert (seen.phase, seen.started.reason, seen.started.holds) == ("Starting", reason, False)
    assert hint in seen.started.message


def test_a_running_container_is_running() -> None:
    seen = observe(batch_job(active=1), [pod("Running", {"running": {}})])
    assert (seen.phase, seen.at_work) == ("Running", True)


def test_a_pod_that_is_done_before_its_job_says_so_still_counts_as_running() -> None:
    assert observe(batch_job(active=1), [pod("Succeeded", ended(0, RECORD, "Completed"))]).phase == "Running"


def test_a_done_run_brings_its_record() -> None:
    seen = observe(batch_job(COMPLETE, succeeded=1), [pod("Succeeded", ended(0, RECORD, "Completed"))])
    assert seen.phase == "Succeeded"
    assert seen.finished_at == "2026-11-23T10:05:00Z"
    assert seen.record is not None
    assert seen.record.metrics is not None
    assert seen.record.metrics.train_loss == 0.5


def test_a_done_run_whose_pod_is_gone_has_no_record() -> None:
    assert observe(batch_job(COMPLETE, succeeded=1), []).record is None


def test_the_record_of_the_deciding_pod_counts_not_the_order_of_the_list() -> None:
    old = pod("Failed", ended(70, {**RECORD, "reason": "InternalError"}), name="p0")
    new = pod("Failed", ended(65, {**RECORD, "reason": "DataInvalid"}), name="p1")
    new["metadata"]["creationTimestamp"] = "2026-11-23T10:01:00Z"
    for pods in ([old, new], [new, old]):
        seen = observe(batch_job(FAILED, failed=2), pods)
        assert seen.record is not None
        assert seen.record.reason == "DataInvalid"


def test_out_of_memory_says_what_to_lower() -> None:
    seen = observe(batch_job(FAILED, failed=1), [pod("Failed", ended(137, "", "OOMKilled"))])
    assert seen.record is not None
    assert seen.record.reason == "OutOfMemory"
    assert "microBatchSize" in seen.record.message


def test_a_check_that_runs_out_of_memory_says_who_can_raise_it() -> None:
    checking = pod("Failed", ended(137, "", "OOMKilled"))
    checking["spec"]["containers"][0]["name"] = "agent"
    for status in checking["status"]["containerStatuses"]:
        status["name"] = "agent"
    seen = observe(batch_job(FAILED, failed=1), [checking])
    assert seen.record is not None
    assert "agent.memory" in seen.record.message


def test_a_trainer_that_leaves_no_record_is_quoted() -> None:
    seen = observe(batch_job(FAILED, failed=1), [pod("Failed", ended(1, "exec format error"))])
    assert seen.record is not None
    assert "code 1" in seen.record.message
    assert "exec format error" in seen.record.message


def test_used_up_retries_are_named() -> None:
    condition = {**FAILED, "reason": "BackoffLimitExceeded"}
    record = {"reason": "InternalError", "message": "S3 was gone", "retryable": True}
    seen = observe(batch_job(condition, failed=4), [pod("Failed", ended(70, record))])
    assert seen.record is not None
    assert seen.record.message == "every attempt failed; the last one: S3 was gone"


def test_between_two_attempts_the_last_failure_is_told() -> None:
    record = {"reason": "StorageUnreachable", "message": "S3 was gone", "retryable": True}
    seen = observe(batch_job(failed=1), [pod("Failed", ended(70, record))])
    assert (seen.phase, seen.started.reason) == ("Starting", "StorageUnreachable")


def test_a_kill_at_the_end_of_the_grace_period_is_no_lack_of_memory() -> None:
    killed = pod("Failed", ended(137, ""))
    killed["metadata"]["deletionTimestamp"] = "2026-11-23T10:01:00Z"
    seen = observe(batch_job(failed=1), [killed])
    assert (seen.phase, seen.started.reason) == ("Starting", "Preempted")
    assert "terminationGracePeriodSeconds" in seen.started.message
