"""The life of a FineTuneJob on the whole cluster: stopped, gone on with, interrupted, ended, tidied up."""

import json
import time

import pytest

from e2e import colours
from e2e.colours import NAME
from e2e.serving import RESOURCE
from e2e.small import MINUTES, request, steer, trainers, until, until_it_trains
from e2e.workspace import Workspace, condition

pytestmark = pytest.mark.e2e


def test_a_suspended_job_gives_its_pod_back_and_goes_on_when_told(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "rests", small, training=MINUTES))
    until_it_trains(workspace, "rests")
    steer(workspace, "rests", suspend=True)
    status = workspace.wait("rests", lambda status: status["phase"] == "Suspended", "suspension", 60)["status"]
    assert condition(status, "Suspended")["status"] == "True"
    assert not trainers(workspace)
    assert status.get("preemptions", 0) == 0
    steer(workspace, "rests", suspend=False)
    until_it_trains(workspace, "rests", attempts=2)
    (pod,) = trainers(workspace)
    assert "event=resume" in workspace.kubectl("logs", pod), "from the checkpoint, not anew"
    status = workspace.wait("rests", lambda status: status["phase"] == "Running", "second start", 60)["status"]
    assert (condition(status, "Suspended")["status"], condition(status, "Failed")["status"]) == ("False", "False")


def test_an_evicted_pod_goes_on_in_another_and_costs_no_retry(workspace: Workspace, small: str) -> None:
    workspace.apply(
        request(workspace, "drained", small, training={"epochs": 1000.0, "maxSteps": 400}, maxPreemptions=1)
    )
    until_it_trains(workspace, "drained")
    (name,) = trainers(workspace)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{workspace.namespace}/pods/{name}/eviction"
    workspace.target.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    status = workspace.wait_final("drained", 180)["status"]
    assert (status["phase"], status["attempts"], status["preemptions"]) == ("Succeeded", 2, 1), workspace.story()
    assert status["metrics"]["steps"] == 400
    assert status["metrics"]["resumedFromStep"] > 0


def test_a_deadline_ends_the_run_and_its_batch_job(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "late", small, training=MINUTES, activeDeadlineSeconds=15))
    status = workspace.wait_final("late", 120)["status"]
    assert (status["phase"], condition(status, "Failed")["reason"]) == ("Failed", "DeadlineExceeded")
    workspace.kubectl("wait", "--for=condition=Failed", "job/late-train", "--timeout=60s")
    assert not trainers(workspace)


def test_the_ttl_removes_the_batch_job_and_nothing_trains_again(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "tidy", small, training={"maxSteps": 1}, ttlSecondsAfterFinished=3))
    done = workspace.wait_final("tidy", 180)
    assert done["status"]["phase"] == "Succeeded", workspace.story()
    workspace.kubectl("wait", "--for=delete", "job/tidy-train", "--timeout=60s")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert workspace.job("tidy")["status"]["phase"] == "Succeeded"
        assert not workspace.kubectl("get", "jobs", "-o", "name").strip()
        time.sleep(0.5)


def test_what_is_served_is_deleted_once_it_is_let_go(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "warm", small, training={"maxSteps": 1}, deletionPolicy="Delete"))
    assert workspace.wait_final("warm", 180)["status"]["phase"] == "Succeeded", workspace.story()
    # Nobody has to answer for it.
    unused = {"adapters": [colours.adapter("warm", job="warm")], "routes": [], "router": {"replicas": 1}}
    workspace.apply(colours.deployment(small, replicas=0, **unused))
    workspace.wait(NAME, lambda status: bool(status.get("adapters")), "adapter", 120, resource=RESOURCE)
    workspace.kubectl("delete", "finetunejob", "warm", "--wait=false")
    told = ("get", "events", "--field-selector", "reason=StillServed", "-o", "jsonpath={.items[*].message}")
    until(lambda: f"ModelDeployment {workspace.namespace}/{NAME}" in workspace.kubectl(*told), "word", 30)
    assert any(key.endswith("/manifest.json") for key in workspace.published("warm"))
    workspace.kubectl("delete", RESOURCE, NAME)
    workspace.kubectl("wait", "--for=delete", "finetunejob/warm", "--timeout=120s")
    assert workspace.published("warm") == []
