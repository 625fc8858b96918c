"""The life of a FineTuneJob on the whole cluster: stopped, gone on with, interrupted, ended, tidied up."""

import json
import secrets
import time
from typing import Any

import pytest

from e2e.target import Target
from e2e.workspace import Workspace, condition
from tests.trainer import tiny

pytestmark = pytest.mark.e2e

MINUTES = {"epochs": 1000.0, "maxSteps": 3000, "batchSize": 4, "microBatchSize": 4}
"""Much longer than any test looks at it."""


@pytest.fixture(scope="module")
def small(lorikeet: Target, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The model and data of a job whose trainer is at work a few seconds after its pod has begun."""
    prefix = f"small-{secrets.token_hex(3)}"
    shared = Workspace(lorikeet, "default")
    shared.upload_folder(tiny.write_model(tmp_path_factory.mktemp("small") / "model"), "models", prefix)
    data = tmp_path_factory.mktemp("rows")
    (data / "train.jsonl").write_bytes(tiny.jsonl(tiny.rows()[0]))
    shared.upload_folder(data, "datasets", prefix)
    return {
        "model": {"uri": f"s3://models/{prefix}"},
        "dataset": {"train": [{"uri": f"s3://datasets/{prefix}/train.jsonl"}]},
        "method": {"lora": {"rank": 4}},
        "maxRetries": 0,
    }


def start(workspace: Workspace, name: str, small: dict[str, Any], **spec: Any) -> None:
    metadata = {"name": name}
    workspace.apply(
        {"apiVersion": "lorikeet.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": {**small, **spec}}
    )


def steer(workspace: Workspace, name: str, **spec: Any) -> None:
    workspace.kubectl("patch", "finetunejob", name, "--type", "merge", "-p", json.dumps({"spec": spec}))


def pods(workspace: Workspace, phase: str = "Running") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(workspace.kubectl("get", "pods", "-o", "json"))["items"]
    return [pod for pod in found if pod["status"]["phase"] == phase and "deletionTimestamp" not in pod["metadata"]]


def until_it_trains(workspace: Workspace, name: str, attempts: int = 1) -> None:
    """Wait until the attempt number `attempts` has made its first steps."""
    workspace.wait(name, lambda status: status.get("attempts", 0) >= attempts, f"attempt {attempts}", 120)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for pod in pods(workspace):
            log = workspace.kubectl("logs", pod["metadata"]["name"], check=False)
            if "event=step" in log:
                return
        time.sleep(0.5)
    pytest.fail(f"no step of attempt {attempts}: {workspace.story(name)}")


def test_a_suspended_job_gives_its_pod_back_and_goes_on_when_told(workspace: Workspace, small: dict[str, Any]) -> None:
    start(workspace, "rests", small, training=MINUTES)
    until_it_trains(workspace, "rests")
    steer(workspace, "rests", suspend=True)
    status = workspace.wait("rests", lambda status: status["phase"] == "Suspended", "suspension", 60)["status"]
    assert condition(status, "Suspended")["status"] == "True"
    assert not pods(workspace)
    assert status.get("preemptions", 0) == 0
    steer(workspace, "rests", suspend=False)
    until_it_trains(workspace, "rests", attempts=2)
    (pod,) = pods(workspace)
    assert "event=resume" in workspace.kubectl("logs", pod["metadata"]["name"]), "from the checkpoint, not anew"
    status = workspace.wait("rests", lambda status: status["phase"] == "Running", "second start", 60)["status"]
    assert (condition(status, "Suspended")["status"], condition(status, "Failed")["status"]) == ("False", "False")


def test_an_evicted_pod_goes_on_in_another_and_costs_no_retry(workspace: Workspace, small: dict[str, Any]) -> None:
    start(workspace, "drained", small, training={"epochs": 1000.0, "maxSteps": 400}, maxPreemptions=1)
    until_it_trains(workspace, "drained")
    (pod,) = pods(workspace)
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{workspace.namespace}/pods/{name}/eviction"
    workspace.target.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    status = workspace.wait_final("drained", 180)["status"]
    assert (status["phase"], status["attempts"], status["preemptions"]) == ("Succeeded", 2, 1), workspace.story()
    assert status["metrics"]["steps"] == 400
    assert status["metrics"]["resumedFromStep"] > 0


def test_a_deadline_ends_the_run_and_its_batch_job(workspace: Workspace, small: dict[str, Any]) -> None:
    start(workspace, "late", small, training=MINUTES, activeDeadlineSeconds=15)
    status = workspace.wait_final("late", 120)["status"]
    assert (status["phase"], condition(status, "Failed")["reason"]) == ("Failed", "DeadlineExceeded")
    workspace.kubectl("wait", "--for=condition=Failed", "job/late-train", "--timeout=60s")
    assert not pods(workspace)


def test_the_ttl_removes_the_batch_job_and_nothing_trains_again(workspace: Workspace, small: dict[str, Any]) -> None:
    start(workspace, "tidy", small, training={"maxSteps": 1}, ttlSecondsAfterFinished=3)
    done = workspace.wait_final("tidy", 180)
    assert done["status"]["phase"] == "Succeeded", workspace.story("tidy")
    workspace.kubectl("wait", "--for=delete", "job/tidy-train", "--timeout=60s")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert workspace.job("tidy")["status"]["phase"] == "Succeeded"
        assert not workspace.kubectl("get", "jobs", "-o", "name").strip()
        time.sleep(0.5)
