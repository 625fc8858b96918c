"""How far a running job is: seen by who watches it, told by its own pod alone, taken by every replica."""

import json
import subprocess
import threading

import pytest

from e2e.deploy import NAMESPACE, deploy
from e2e.small import MINUTES, SHORT, request, trainers, until, until_it_trains
from e2e.target import Target
from e2e.workspace import Workspace
from lorikeet_api.progress import path

pytestmark = pytest.mark.e2e

POST = """
import json, sys, urllib.error
from pathlib import Path
from dataclasses import replace
from lorikeet_trainer.progress import Endpoint

own = Endpoint.of()
url = own.url.partition("/apis/")[0] + sys.argv[1]
for token in (own.token, None):
    try:
        replace(own, url=url, token=token).post({"progressPercentage": 1})
        print(200)
    except urllib.error.HTTPError as error:
        print(error.code)
"""
"""In a trainer's pod: posts to the path in the arguments, with the pod's token and with none."""


def test_percent_and_loss_move_for_who_watches_and_both_replicas_take_them(workspace: Workspace, small: str) -> None:
    command = ["kubectl", "--context", workspace.target.context, "-n", workspace.namespace]
    command += ["get", "finetunejobs", "--watch", "--output-watch-events=false", "--no-headers"]
    watch = subprocess.Popen(command, env=workspace.target.environment, stdout=subprocess.PIPE, text=True)
    rows: list[list[str]] = []
    assert watch.stdout is not None
    stream = watch.stdout
    reader = threading.Thread(target=lambda: rows.extend(line.split() for line in stream), daemon=True)
    reader.start()
    try:
        workspace.apply(request(workspace, "watched", small, training={**MINUTES, "loggingSteps": 5}))
        until_it_trains(workspace, "watched")

        def moves() -> bool:
            running = [row for row in rows if len(row) >= 5 and row[1] == "Running"]
            percents = {row[2] for row in running if row[2].isdigit()}
            return len(percents) >= 3 and len({row[3] for row in running}) >= 3

        until(moves, "percent and loss that move", 120, lambda: f"{rows}\n{workspace.story()}")
        until(lambda: all(count > 0 for count in taken(workspace.target)), "post to each replica", 120, workspace.story)
    finally:
        watch.terminate()
        watch.wait(timeout=10)
    status = workspace.job("watched")["status"]
    progress = status["progress"]
    assert 0 < progress["step"] < progress["totalSteps"] == 3000
    assert progress["percent"] == 100 * progress["step"] // 3000
    assert progress["etaSeconds"] > 0
    assert progress["stage"] == "train"
    (pod,) = trainers(workspace)
    assert progress["pod"] == pod


def taken(target: Target) -> list[float]:
    """Return how many posts each replica has taken."""
    return [sum(found) for found in metric(target, 'lorikeet_progress_reports_total{code="200"}')]


def metric(target: Target, name: str) -> list[list[float]]:
    """Return the values of a metric, of each replica."""
    pods = Workspace(target, NAMESPACE).pods("app.kubernetes.io/component=operator")
    running = [pod["metadata"]["name"] for pod in pods]
    assert len(running) == 2
    texts = [target.read(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics").decode() for pod in running]
    return [[float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)] for text in texts]


def test_a_pod_reports_on_its_own_job_alone(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "yours", small, suspend=True))
    workspace.apply(request(workspace, "mine", small, training={**MINUTES, "maxSteps": 100_000}))
    workspace.wait("mine", lambda status: status.get("progress", {}).get("percent", -1) >= 0, "progress", 180)
    selector = "lorikeet.dev/finetunejob=mine,app.kubernetes.io/component=trainer"
    pod = workspace.kubectl("get", "pods", "-l", selector, "-o", "name").strip()

    def codes(job: str) -> list[str]:
        return workspace.kubectl("exec", pod, "--", "python", "-c", POST, path(workspace.namespace, job)).split()

    assert codes("mine") == ["200", "401"]
    assert codes("yours") == ["403", "401"]


def test_the_end_is_told_by_two_ways(workspace: Workspace, small: str) -> None:
    workspace.apply(request(workspace, "told", small, training=SHORT))
    status = workspace.wait_final("told", 180)["status"]
    assert status["phase"] == "Succeeded", workspace.story()
    assert status["progress"]["percent"] == 100
    assert status["progress"]["record"]["artifacts"] == status["artifacts"]


def test_an_upgrade_renews_the_certificate_under_a_running_job(workspace: Workspace, small: str) -> None:
    target, system = workspace.target, ("-n", NAMESPACE)
    workspace.apply(request(workspace, "outlives", small, training={**MINUTES, "maxSteps": 100_000}))
    workspace.wait("outlives", lambda status: status.get("progress", {}).get("percent", -1) >= 0, "progress", 180)
    before = target.get(*system, "secret", "lorikeet-progress")["data"]
    expired = expires(target)
    # A certificate without its key cannot be used: the hook makes another one.
    target.kubectl(*system, "patch", "secret", "lorikeet-progress", "-p", json.dumps({"data": {"tls.key": ""}}))
    deploy(target)
    after = target.get(*system, "secret", "lorikeet-progress")["data"]
    assert after["ca.crt"] == before["ca.crt"]
    assert after["tls.crt"] != before["tls.crt"]
    # The kubelet brings it within a minute or two, and the replicas look every half minute.
    until(lambda: not expired & expires(target), "replica without the old certificate", 240, workspace.story)
    then = workspace.job("outlives")["status"]["progress"]["updatedTime"]
    workspace.wait("outlives", lambda status: status["progress"]["updatedTime"] > then, "progress afterwards", 60)


def expires(target: Target) -> set[float]:
    """Return when the replicas' certificates expire, in Unix time."""
    return {sum(found) for found in metric(target, "lorikeet_progress_certificate_expires_seconds ")}
