"""Two replicas of the operator on the whole cluster: one leads, the other takes over."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from e2e.deploy import NAMESPACE, RELEASE
from e2e.target import Target
from e2e.workspace import Workspace

pytestmark = pytest.mark.e2e

FAILOVER_SECONDS = 20


def holder(target: Target) -> str:
    """Return the pod that holds the Lease."""
    return str(target.get("-n", NAMESPACE, "lease", RELEASE)["spec"].get("holderIdentity", ""))


def ready_pods(target: Target) -> list[str]:
    pods = target.get("-n", NAMESPACE, "pods", "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
    return [
        pod["metadata"]["name"]
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"]
        and any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))
    ]


def wait_until_both_are_ready(target: Target) -> None:
    target.kubectl("-n", NAMESPACE, "rollout", "status", f"deploy/{RELEASE}", "--timeout=120s")
    deadline = time.monotonic() + 60
    while len(ready_pods(target)) != 2 or holder(target) not in ready_pods(target):
        assert time.monotonic() < deadline, (ready_pods(target), holder(target))
        time.sleep(0.5)


def request(name: str) -> str:
    """Return a job that is answered without a pod: its profile does not exist."""
    spec = {
        "profileRef": {"name": "nobody"},
        "model": {"uri": "s3://models/x"},
        "dataset": {"train": [{"uri": "s3://data/x.jsonl"}]},
    }
    return json.dumps(
        {"apiVersion": "lorikeet.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
    )


def answered(workspace: Workspace, name: str) -> float:
    """Apply a request; return the seconds until the operator has answered it."""
    began = time.monotonic()
    workspace.kubectl("apply", "-f", "-", stdin=request(name))
    workspace.wait(name, lambda status: bool(status.get("conditions")), "answer", 60)
    return time.monotonic() - began


def process_of(target: Target, pod: str) -> int:
    """Return the operator's process in a pod, as this machine numbers it."""
    uid = target.get("-n", NAMESPACE, "pod", pod)["metadata"]["uid"]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if uid in (entry / "cgroup").read_text() and b"lorikeet-operator" in (entry / "cmdline").read_bytes():
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process of pod {pod} here")


@pytest.mark.skipif(os.environ.get("CLUSTER") == "existing" or os.geteuid() != 0, reason="stops a process of the node")
def test_a_leader_that_hangs_is_followed_and_writes_nothing_when_it_wakes(
    workspace: Workspace, lorikeet: Target
) -> None:
    wait_until_both_are_ready(lorikeet)
    leader = holder(lorikeet)
    assert answered(workspace, "before") < FAILOVER_SECONDS
    process = process_of(lorikeet, leader)
    os.kill(process, signal.SIGSTOP)
    try:
        assert answered(workspace, "hangs") < FAILOVER_SECONDS
        follower = holder(lorikeet)
        assert follower != leader
        before = workspace.job("hangs")["metadata"]["resourceVersion"]
    finally:
        os.kill(process, signal.SIGCONT)
    lorikeet.kubectl(
        "-n", NAMESPACE, "wait", "--for=jsonpath={.status.containerStatuses[0].restartCount}=1", f"pod/{leader}"
    )
    said = lorikeet.kubectl("-n", NAMESPACE, "logs", leader, "--previous", "--tail", "5")
    assert "the operator ends, to be started again: the Lease" in said
    wait_until_both_are_ready(lorikeet)
    assert holder(lorikeet) == follower
    assert workspace.job("hangs")["metadata"]["resourceVersion"] == before


def test_an_update_hands_the_lead_over(workspace: Workspace, lorikeet: Target) -> None:
    wait_until_both_are_ready(lorikeet)
    before = ready_pods(lorikeet)
    lorikeet.kubectl("-n", NAMESPACE, "rollout", "restart", f"deploy/{RELEASE}")
    assert answered(workspace, "meanwhile") < FAILOVER_SECONDS
    wait_until_both_are_ready(lorikeet)
    assert holder(lorikeet) not in before
