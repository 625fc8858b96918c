"""The main job on the whole cluster: QLoRA of a real model in a pod that asked for a GPU."""

import hashlib
import json
import secrets
import time
from pathlib import Path
from typing import Any

import pytest

from e2e import demo
from e2e.deploy import NAMESPACE
from e2e.target import Target
from e2e.workspace import Workspace, condition
from lorikeet_api.contract import Manifest

# Its two threads wait for each other, at full speed, whenever others take the core of one of them.
pytestmark = [pytest.mark.e2e, pytest.mark.alone]


@pytest.fixture(scope="module")
def finished(lorikeet: Target) -> tuple[Workspace, dict[str, Any]]:
    """The README's ten lines, run to their end."""
    workspace = Workspace(lorikeet, f"e2e-main-{secrets.token_hex(3)}")
    workspace.create()
    workspace.kubectl("apply", "-f", str(demo.YAML))
    return workspace, workspace.wait_final(demo.NAME, 900)


def test_ten_lines_end_in_success(finished: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, job = finished
    assert job["status"]["phase"] == "Succeeded", workspace.story()
    workspace.kubectl("wait", "--for=condition=Complete", f"finetunejob/{demo.NAME}", "--timeout=1s")


def test_it_is_followed_and_read_by_a_plugin_of_kubectl(
    finished: tuple[Workspace, dict[str, Any]], tmp_path: Path
) -> None:
    workspace, job = finished
    target, place = workspace.target, ("-n", workspace.namespace)
    assert job["status"]["message"] in target.lorikeet("watch", demo.NAME, *place)
    assert " event=step step=20 " in target.lorikeet("logs", demo.NAME, *place)
    page = tmp_path / "report.html"
    read = ("--output", str(page), "--s3-endpoint", target.s3.endpoint)
    told = target.lorikeet("report", demo.NAME, *place, *read)
    assert f"published {job['status']['artifacts']['uri']}, revision {job['status']['artifacts']['revision']}" in told
    assert "where the time went" in told
    assert '<svg class="plot' in page.read_text()


def test_the_manifest_in_s3_is_the_one_in_status(finished: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, job = finished
    artifacts = job["status"]["artifacts"]
    bucket, _, prefix = artifacts["uri"].removeprefix("s3://").partition("/")
    text = workspace.s3.get_object(Bucket=bucket, Key=f"{prefix}/manifest.json")["Body"].read()
    assert hashlib.sha256(text).hexdigest() == artifacts["sha256"]
    assert artifacts["revision"] == artifacts["sha256"][:8]
    manifest = Manifest.model_validate_json(text)
    for file in manifest.files:
        body = workspace.s3.get_object(Bucket=bucket, Key=f"{prefix}/{file.path}")["Body"].read()
        assert hashlib.sha256(body).hexdigest() == file.sha256, file.path
    assert sum(file.size for file in manifest.files) == artifacts["sizeBytes"]
    assert manifest.contract == manifest.contract.model_validate(job["status"]["resolved"]["contract"])


def test_it_was_really_four_bit_and_it_learned(finished: tuple[Workspace, dict[str, Any]]) -> None:
    metrics = finished[1]["status"]["metrics"]
    assert metrics["quantizedLayers"] == 210  # 30 layers of 7 projections
    assert metrics["steps"] == 20
    assert metrics["evalLoss"] < 0.5 * metrics["baseEvalLoss"]


def test_the_pod_was_restricted_and_held_a_gpu(finished: tuple[Workspace, dict[str, Any]]) -> None:
    selector = "app.kubernetes.io/component=trainer"
    pods = json.loads(finished[0].kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    assert len(pods) == 1
    container = pods[0]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert not pods[0]["spec"].get("automountServiceAccountToken")


def test_events_tell_the_story_once(finished: tuple[Workspace, dict[str, Any]]) -> None:
    events = json.loads(
        finished[0].kubectl("get", "events", "--field-selector", "involvedObject.kind=FineTuneJob", "-o", "json")
    )
    reasons = [event["reason"] for event in events["items"]]
    assert {"Checked", "Bound", "TrainerRunning", "Published"} <= set(reasons)
    told = [(event["reason"], event["message"]) for event in events["items"]]
    assert len(told) == len(set(told))
    assert all(event["count"] == 1 for event in events["items"])


def test_a_finished_job_stays_finished_when_its_batch_job_is_deleted(
    finished: tuple[Workspace, dict[str, Any]],
) -> None:
    workspace, job = finished
    workspace.kubectl("delete", "job", f"{demo.NAME}-train", "--wait=true")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert workspace.job(demo.NAME)["status"] == job["status"]
        assert f"{demo.NAME}-train" not in workspace.kubectl("get", "jobs", "-o", "name")
        time.sleep(0.5)


def test_a_job_that_is_deleted_and_applied_again_finds_its_result(finished: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, job = finished
    workspace.kubectl("delete", "finetunejob", demo.NAME, "--wait=true")
    workspace.kubectl("wait", "--for=delete", f"job/{demo.NAME}-preflight", "--timeout=60s")
    workspace.apply({name: job[name] for name in ("apiVersion", "kind", "spec")} | {"metadata": {"name": demo.NAME}})
    status = workspace.wait_final(demo.NAME, 60)["status"]
    assert (status["phase"], condition(status, "Complete")["reason"]) == ("Succeeded", "Adopted")
    assert status["artifacts"] == job["status"]["artifacts"]
    assert status.get("attempts", 0) == 0


def writes(found: Target) -> float:
    """Return how many writes the operator has made, by its own count."""
    text = found.read(f"/api/v1/namespaces/{NAMESPACE}/services/lorikeet:8080/proxy/metrics").decode()
    verbs = ("create", "apply", "apply_status", "patch")
    lines = [line for line in text.splitlines() if line.startswith("lorikeet_api_requests_total{")]
    lines = [line for line in lines if "leases.coordination.k8s.io" not in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if any(f'verb="{verb}"' in line for verb in verbs))


def test_a_restarted_operator_writes_nothing_when_nothing_changed(
    finished: tuple[Workspace, dict[str, Any]], lorikeet: Target
) -> None:
    assert finished[1]["status"]["phase"] == "Succeeded"
    before = lorikeet.get("-n", finished[0].namespace, "finetunejob", demo.NAME)["metadata"]["resourceVersion"]
    lorikeet.kubectl("-n", NAMESPACE, "rollout", "restart", "deploy/lorikeet")
    lorikeet.kubectl("-n", NAMESPACE, "rollout", "status", "deploy/lorikeet", "--timeout=120s")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert writes(lorikeet) == 0
        time.sleep(1)
    after = lorikeet.get("-n", finished[0].namespace, "finetunejob", demo.NAME)["metadata"]["resourceVersion"]
    assert after == before


def test_the_tuned_model_beats_the_base_on_unseen_tables(
    finished: tuple[Workspace, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    workspace, job = finished
    folder = tmp_path_factory.mktemp("answers")
    model, data = demo.material(folder)
    demo.download_adapter(workspace, job["status"]["artifacts"]["uri"], folder / "adapter")
    result = demo.compare(model, folder / "adapter", data / "heldout.jsonl")
    assert 100 * (result["tuned"] - result["base"]) / result["questions"] >= demo.POINTS, result
    workspace.delete()
