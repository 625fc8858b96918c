"""What happens to a job that is not its fault: nothing is trained twice, lost, left over or left unexplained."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.cluster import addons
from e2e.small import MINUTES, SHORT, request, steer, trainers, until, until_it_trains, upload_rows
from e2e.target import Target
from e2e.workspace import SECRET, Workspace, condition, profile
from tests.trainer import tiny

pytestmark = pytest.mark.e2e


@contextmanager
def without_operator(target: Target) -> Iterator[None]:
    """Do something while no operator runs."""
    system = ("-n", "lorikeet-system")
    target.kubectl(*system, "scale", "deployment/lorikeet", "--replicas=0")
    target.kubectl(
        *system, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "--timeout=60s"
    )
    try:
        yield
    finally:
        target.kubectl(*system, "scale", "deployment/lorikeet", "--replicas=2")
        target.kubectl(*system, "rollout", "status", "deployment/lorikeet", "--timeout=120s")


@pytest.mark.alone
def test_a_record_that_is_lost_with_its_pod_is_read_from_the_manifest(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "lost", small, training={**SHORT, "maxSteps": 1}))
    workspace.wait("lost", lambda status: "jobUid" in status, "batch Job", 60)
    with without_operator(workspace.target):
        workspace.kubectl("wait", "--for=condition=Complete", "job/lost-train", "--timeout=300s")
        workspace.kubectl("delete", "pods", "-l", "app.kubernetes.io/component=trainer", "--wait=true")
    status = workspace.wait_final("lost", 120)["status"]
    assert (status["phase"], condition(status, "Complete")["reason"]) == ("Succeeded", "Published"), status["message"]
    assert status["metrics"]["steps"] == 1
    assert "manifest.json" in str(workspace.published(f"lost/{status['artifacts']['runId']}"))


@pytest.mark.alone
def test_a_job_that_was_done_and_deleted_while_nobody_looked_has_its_result(workspace: Workspace, small: str) -> None:
    """Its status is also what a backup brings to another cluster: it names a batch Job that is not there."""
    workspace.apply(request(workspace, "unseen", small, training={**SHORT, "maxSteps": 1}))
    workspace.wait("unseen", lambda status: "jobUid" in status, "batch Job", 60)
    with without_operator(workspace.target):
        workspace.kubectl("wait", "--for=condition=Complete", "job/unseen-train", "--timeout=300s")
        workspace.kubectl("delete", "job", "unseen-train", "--wait=true")
    status = workspace.wait_final("unseen", 120)["status"]
    assert (status["phase"], condition(status, "Complete")["reason"]) == ("Succeeded", "Published"), status["message"]
    assert status["metrics"]["steps"] == 1


def test_a_batch_job_that_is_deleted_is_not_trained_again(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "undone", small, training=MINUTES))
    until_it_trains(workspace, "undone")
    workspace.kubectl("delete", "job", "undone-train", "--wait=false")
    status = workspace.wait_final("undone", 120)["status"]
    assert (status["phase"], condition(status, "Failed")["reason"]) == ("Failed", "JobDeleted"), status["message"]
    assert not trainers(workspace)


@pytest.mark.alone
@pytest.mark.skipif(os.environ.get("CLUSTER") == "existing", reason="stops the development cluster's own S3 server")
def test_a_store_that_is_away_for_a_minute_costs_nothing(workspace: Workspace, small: str) -> None:
    training = {**SHORT, "maxSteps": 600, "checkpoints": {"everySteps": 20}}
    workspace.apply(request(workspace, "patient", small, training=training))
    until_it_trains(workspace, "patient")
    store = ("-n", addons.S3_NAMESPACE)
    workspace.target.kubectl(*store, "scale", "deployment/s3", "--replicas=0")
    try:
        workspace.target.kubectl(*store, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=s3")
        time.sleep(60)  # the minute
    finally:
        workspace.target.kubectl(*store, "scale", "deployment/s3", "--replicas=1")
        workspace.target.kubectl(*store, "rollout", "status", "deployment/s3", "--timeout=60s")
    status = workspace.wait_final("patient", 240)["status"]
    assert (status["phase"], status["attempts"]) == ("Succeeded", 1), workspace.story()
    assert status["metrics"]["steps"] == 600


def test_profile_and_secret_may_go_while_a_job_runs(workspace: Workspace, small: str) -> None:
    body = profile(workspace.target, f"gone-{workspace.namespace}")
    workspace.target.apply([body])
    workspace.apply(request(workspace, "goes-on", small, profileRef={"name": body["metadata"]["name"]}))
    until_it_trains(workspace, "goes-on")
    workspace.target.kubectl("delete", "tuningprofile", body["metadata"]["name"])
    workspace.kubectl("delete", "secret", SECRET)
    status = workspace.wait_final("goes-on", 180)["status"]
    assert (status["phase"], status["attempts"]) == ("Succeeded", 1), status["message"]


def test_data_that_changes_between_two_attempts_is_refused(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "moved", small, training=MINUTES))
    until_it_trains(workspace, "moved")
    steer(workspace, "moved", suspend=True)
    workspace.wait("moved", lambda status: status["phase"] == "Suspended", "suspension", 60)
    upload_rows(workspace, tiny.rows()[1])
    steer(workspace, "moved", suspend=False)
    status = workspace.wait_final("moved", 120)["status"]
    assert condition(status, "Failed")["reason"] == "SourceChanged", status["message"]


def test_two_jobs_may_name_the_same_output(workspace: Workspace, small: str) -> None:
    output = {"uri": f"s3://adapters/{workspace.namespace}/shared"}
    for name, seed in (("one", 1), ("two", 2)):
        training = {**SHORT, "maxSteps": 2, "seed": seed}
        workspace.apply(request(workspace, name, small, training=training, output=output))
    done = [workspace.wait_final(name, 240)["status"] for name in ("one", "two")]
    assert [status["phase"] for status in done] == ["Succeeded", "Succeeded"], [status["message"] for status in done]
    assert done[0]["artifacts"]["uri"] != done[1]["artifacts"]["uri"]
    there = workspace.published("shared")
    for status in done:
        assert any(key.endswith(f"{status['artifacts']['runId']}/manifest.json") for key in there)


def test_two_jobs_that_ask_for_the_very_same_train_once(workspace: Workspace, small: str) -> None:
    output = {"uri": f"s3://adapters/{workspace.namespace}/twins"}
    for name in ("first", "second"):
        workspace.apply(request(workspace, name, small, output=output))
        workspace.wait(name, lambda status: "resolved" in status, "resolution", 30)
    waits = workspace.wait("second", lambda status: "first makes this very run" in status["message"], "wait", 30)
    assert condition(waits["status"], "Validated")["reason"] == "SameRunUnderway"
    done = [workspace.wait_final(name, 180)["status"] for name in ("first", "second")]
    assert [condition(status, "Complete")["reason"] for status in done] == ["Published", "Adopted"], workspace.story()
    assert done[0]["artifacts"] == done[1]["artifacts"]
    assert "jobUid" not in done[1]


def test_three_rows_are_trained_on(workspace: Workspace, small: str) -> None:
    data = upload_rows(workspace, tiny.rows()[0][:3], "three.jsonl")
    workspace.apply(request(workspace, "three", small, data=data, training={"epochs": 1.0}))
    status = workspace.wait_final("three", 180)["status"]
    assert (status["phase"], status["metrics"]["trainExamples"]) == ("Succeeded", 3), status["message"]


def test_deleting_a_job_deletes_what_it_wrote_where_that_is_asked_for(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "kept", small, training={**SHORT, "maxSteps": 1}))
    assert workspace.wait_final("kept", 120)["status"]["phase"] == "Succeeded"
    workspace.apply(request(workspace, "swept", small, training=MINUTES, deletionPolicy="Delete"))
    until_it_trains(workspace, "swept")
    workspace.kubectl("delete", "finetunejob", "kept", "swept", "--cascade=foreground", "--timeout=150s")
    assert any(key.endswith("/manifest.json") for key in workspace.published("kept"))
    assert workspace.published("swept") == []


def test_a_namespace_that_is_deleted_while_it_trains_goes(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "swept-away", small, training=MINUTES, deletionPolicy="Delete"))
    until_it_trains(workspace, "swept-away")
    workspace.target.kubectl("delete", "namespace", workspace.namespace, "--timeout=180s")
    # What stays behind in S3 is said where Events are still taken.
    about = f"involvedObject.kind=Namespace,involvedObject.name={workspace.namespace}"
    events = workspace.target.get("-n", "default", "events", "--field-selector", about)["items"]
    assert [event["reason"] for event in events] == ["CleanupFailed"]
    assert f"s3://adapters/{workspace.namespace}/swept-away" in events[0]["message"]


def test_fifty_jobs_that_come_and_go_leave_nothing(workspace: Workspace, small: str) -> None:
    bodies = [request(workspace, f"brief-{number}", small) for number in range(50)]
    workspace.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies}))
    workspace.kubectl("delete", "finetunejobs", "--all", "--timeout=120s")
    until(
        lambda: not workspace.kubectl("get", "jobs,pods", "-l", "lorikeet.dev/finetunejob", "-o", "name"),
        "end of all that was made",
        240,
    )


def test_no_operator_restart_was_needed(lorikeet: Target) -> None:
    pods = lorikeet.get("-n", "lorikeet-system", "pods")["items"]
    assert {pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods} == {0}
