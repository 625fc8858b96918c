"""What may happen to a ModelDeployment while 50 requests at a time are asked of it, by a client that never asks twice.

What is done with care fails none of them: deletion, rollout, an agent, a store or an operator that is away. What kills
a pod fails at most what is in flight on it.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e import colours
from e2e.cluster import addons
from e2e.colours import MODEL, NAME
from e2e.deploy import NAMESPACE, RELEASE
from e2e.load import Load, load
from e2e.node import on_the_node, process_of
from e2e.serving import deployment, pods, steer, wait_for, weights
from e2e.small import until
from e2e.target import Target
from e2e.workspace import Workspace

# Their client takes all that the cores have left, for as long as they last.
pytestmark = [pytest.mark.e2e, pytest.mark.alone]

CONCURRENCY = 50


@pytest.fixture
def used(served_colours: Workspace) -> Iterator[Load]:
    """A client that keeps 50 requests in flight, half of them streams."""
    with load(served_colours, colours.plan(served_colours, CONCURRENCY)) as client:
        client.until_answered(2 * CONCURRENCY)
        yield client


def expect_nothing_failed(client: Load) -> None:
    report = client.until_answered(2 * CONCURRENCY)
    assert (report["failures"][:5], report["wrong"][:5]) == ([], [])
    assert report["streams"] > 0.4 * report["answered"]


def until_replaced(workspace: Workspace, component: str, before: list[dict[str, Any]], seconds: float) -> None:
    """Wait until none of the pods `before` is there, and as many others are ready."""
    gone = {pod["metadata"]["name"] for pod in before}

    def replaced() -> bool:
        there = pods(workspace, NAME, component)
        ready = [pod for pod in there if _is_ready(pod) and pod["metadata"]["name"] not in gone]
        return len(ready) == len(there) == len(before)

    until(replaced, f"other pods of component {component}", seconds, workspace.story)


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def test_a_router_that_is_deleted_fails_nothing(served_colours: Workspace, used: Load) -> None:
    gone = pods(served_colours, NAME, "router")[0]["metadata"]["name"]
    served_colours.kubectl("delete", "pod", gone, "--wait=true", "--timeout=120s")
    wait_for(served_colours, NAME, "Ready", 120)
    expect_nothing_failed(used)


def test_a_rollout_of_routers_and_engines_fails_nothing(served_colours: Workspace, used: Load) -> None:
    """It deletes each engine with care, too, which takes minutes where two cores do everything."""
    before = {component: pods(served_colours, NAME, component) for component in ("router", "engine")}
    steer(
        served_colours,
        NAME,
        router={"idleTimeoutSeconds": 599},
        compute={"podAnnotations": {"example.com/rolled": str(time.time())}},
    )
    for component, old in before.items():
        until_replaced(served_colours, component, [*old], 750)
    wait_for(served_colours, NAME, "Ready", 60)
    expect_nothing_failed(used)


@on_the_node
def test_an_agent_that_is_killed_fails_nothing(served_colours: Workspace, used: Load) -> None:
    pod = pods(served_colours, NAME, "engine")[0]
    os.kill(process_of(pod, b"lorikeet-agent"), signal.SIGKILL)
    _until_restarted(served_colours, pod["metadata"]["name"], "initContainerStatuses", "agent")
    wait_for(served_colours, NAME, "Ready", 120)
    expect_nothing_failed(used)


def _until_restarted(workspace: Workspace, pod: str, kind: str, container: str) -> None:
    def restarted() -> bool:
        statuses = workspace.get("pod", pod)["status"].get(kind, [])
        return any(each["name"] == container and each["restartCount"] and each["ready"] for each in statuses)

    until(restarted, f"another {container}", 240, workspace.story)


@on_the_node
@pytest.mark.parametrize(("component", "program"), [("router", b"envoy"), ("engine", b"vllm")])
def test_a_pod_that_is_killed_fails_at_most_what_is_in_flight_on_it(
    served_colours: Workspace, used: Load, component: str, program: bytes
) -> None:
    pod = pods(served_colours, NAME, component)[0]
    process = process_of(pod, program)
    killed = time.time()
    os.kill(process, signal.SIGKILL)
    _until_restarted(served_colours, pod["metadata"]["name"], "containerStatuses", pod["spec"]["containers"][0]["name"])
    wait_for(served_colours, NAME, "Ready", 240)
    report = used.until_answered(2 * CONCURRENCY)
    assert report["wrong"] == []
    # Beside those in flight: until Kubernetes knows that a router is gone, its address hangs up on who comes anew.
    late = [each for each in report["failures"] if each["asked"] > killed + 1]
    assert late == [], f"requests that were asked after it was gone, which was at {killed}"


@pytest.mark.skipif(os.environ.get("CLUSTER") == "existing", reason="stops the development cluster's own S3 server")
def test_a_store_that_is_away_for_a_minute_fails_nothing(served_colours: Workspace, used: Load) -> None:
    store = ("-n", addons.S3_NAMESPACE)
    target = served_colours.target
    target.kubectl(*store, "scale", "deployment/s3", "--replicas=0")
    try:
        target.kubectl(*store, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=s3")
        time.sleep(60)  # the minute
    finally:
        target.kubectl(*store, "scale", "deployment/s3", "--replicas=1")
        target.kubectl(*store, "rollout", "status", "deployment/s3", "--timeout=60s")
    expect_nothing_failed(used)


@contextmanager
def no_operator(target: Target) -> Iterator[None]:
    """Take the operator away while the block runs."""
    target.kubectl("-n", NAMESPACE, "scale", f"deploy/{RELEASE}", "--replicas=0")
    try:
        target.kubectl("-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator")
        yield
    finally:
        target.kubectl("-n", NAMESPACE, "scale", f"deploy/{RELEASE}", "--replicas=2")
        target.kubectl("-n", NAMESPACE, "rollout", "status", f"deploy/{RELEASE}", "--timeout=120s")


def test_an_operator_that_is_away_for_a_minute_in_a_shift_fails_nothing(served_colours: Workspace, used: Load) -> None:
    steer(served_colours, NAME, routes=[colours.route(50, 50)])
    with no_operator(served_colours.target):
        steer(served_colours, NAME, routes=[colours.route(20, 80)])
        time.sleep(60)  # the minute
        used.until_answered(CONCURRENCY)
    wait_for(served_colours, NAME, "Ready", 60)
    assert weights(deployment(served_colours, NAME)["status"], MODEL) == {"a": 20, "b": 80}
    expect_nothing_failed(used)
    steer(served_colours, NAME, routes=[colours.route(90, 10)])
