"""Two replicas of the operator on the whole cluster: one leads, the other takes over."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from e2e import node
from e2e.deploy import NAMESPACE, RELEASE
from e2e.node import on_the_node
from e2e.target import Target
from e2e.workspace import Workspace

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

FAILOVER_SECONDS = 20


def holder(target: Target) -> str:
    """Return the pod that holds the Lease."""
    return str(target.get("-n", NAMESPACE, "lease", RELEASE)["spec"].get("holderIdentity", ""))


def ready_pods(target: Target) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in Workspace(target, NAMESPACE).pods(f"app.kubernetes.io/instance={RELEASE}")
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))
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


def process_of(target: Target, pod: str, program: bytes = b"lorikeet-operator") -> int:
    """Return the process of a program in a pod of the operator."""
    return node.process_of(target.get("-n", NAMESPACE, "pod", pod), program)


@contextmanager
def cut_off(target: Target, pod: str) -> Iterator[None]:
    """Drop every packet that a pod sends to the API server, without a word to either side."""
    server = target.get("-n", "default", "service", "kubernetes")["spec"]["clusterIP"]
    # The network is that of the pod, and outlives its operator.
    inside = ["nsenter", "-t", str(process_of(target, pod, b"pause")), "-n", "iptables"]
    rule = ["OUTPUT", "-d", server, "-j", "DROP"]
    subprocess.run([*inside, "-A", *rule], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run([*inside, "-D", *rule], check=True, timeout=30)


@on_the_node
def test_a_leader_that_is_cut_off_from_the_api_stops_before_another_one_leads(
    workspace: Workspace, lorikeet: Target
) -> None:
    wait_until_both_are_ready(lorikeet)
    leader = holder(lorikeet)
    with cut_off(lorikeet, leader):
        assert answered(workspace, "cut") < FAILOVER_SECONDS
        lease = lorikeet.get("-n", NAMESPACE, "lease", RELEASE)["spec"]
        assert lease["holderIdentity"] != leader
        wait_for_words(lorikeet, leader, "the operator ends, to be started again: the Lease")
        # Its work ends first; the process a while later, when what trainers have told is written or given up.
        said = wait_for_words(lorikeet, leader, "this replica works no more")
    stopped = datetime.fromisoformat(said.split()[0])
    assert stopped < datetime.fromisoformat(lease["acquireTime"]), "two have led at once"
    wait_until_both_are_ready(lorikeet)


def wait_for_words(target: Target, pod: str, words: str) -> str:
    """Return the line of a pod's log, with its time in front, that says something; also of a container before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for which in ((), ("--previous",)):
            log = target.kubectl("-n", NAMESPACE, "logs", pod, "--timestamps", *which, check=False)
            for line in log.splitlines():
                if words in line:
                    return line
        time.sleep(0.5)
    raise AssertionError(f"pod {pod} has never said {words!r}")


@on_the_node
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
