"""Why a pod does not serve, as it is read off the pod."""

import json
from typing import Any

import pytest

from lorikeet_operator.finding import Finding
from lorikeet_operator.serving.trouble import is_being_prepared, is_going, is_ready, refusal, trouble

NO_ROOM = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "3 Insufficient gpu."}


def pod(*containers: dict[str, Any], node: str = "n1", conditions: Any = (), **status: Any) -> dict[str, Any]:
    """Return a pod as the cache keeps it."""
    return {
        "metadata": {"name": "p0"},
        "spec": {"nodeName": node} if node else {},
        "status": {"conditions": list(conditions), "containerStatuses": list(containers), **status},
    }


def container(state: dict[str, Any], last: dict[str, Any] | None = None, name: str = "engine") -> dict[str, Any]:
    return {"name": name, "state": state, "lastState": last or {}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def found(*containers: dict[str, Any], surge: bool = False, **of: Any) -> Finding:
    seen = trouble(pod(*containers, **of), surge)
    assert seen is not None
    assert seen.holds
    return seen


@pytest.mark.parametrize(
    "state",
    [
        pod(),
        pod(node=""),
        pod(node="", conditions=[{"type": "PodScheduled", "status": "True"}]),
        pod(container(waiting("PodInitializing"))),
        pod(container(waiting("ContainerCreating"))),
        pod(container({"running": {}})),
        pod(container({"running": {}}, ended(137))),
        pod(initContainerStatuses=[container(ended(0, reason="Completed"), name="model")]),
    ],
    ids=[
        "just made",
        "not scheduled yet",
        "just scheduled",
        "it is prepared",
        "it is made",
        "it runs",
        "it runs again after it was killed",
        "its init container is done",
    ],
)
def test_a_pod_that_is_under_way_is_no_trouble(state: dict[str, Any]) -> None:
    assert trouble(state, surge=False) is None


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (pod(), True),
        (pod(container(waiting("PodInitializing"))), True),
        (pod(container(waiting("ContainerCreating"))), True),
        (pod(node=""), False),
        (pod(container(waiting("PodInitializing")), initContainerStatuses=[container({"running": {}})]), False),
        (pod(container(waiting("PodInitializing")), initContainerStatuses=[container(ended(0))]), False),
        (pod(container(waiting("CrashLoopBackOff"))), False),
        ({**pod(), "metadata": {"name": "p0", "deletionTimestamp": "2026-11-23T10:00:00Z"}}, False),
        (pod(conditions=[{"type": "Ready", "status": "True"}]), False),
    ],
    ids=["bound", "initialises", "is made", "has no node", "one runs", "one has run", "fell over", "goes", "is ready"],
)
def test_a_pod_is_prepared_on_its_node_until_something_of_it_runs(state: dict[str, Any], expected: bool) -> None:
    assert is_being_prepared(state) == expected


def test_a_ready_pod_is_no_trouble_whatever_became_of_its_containers_before() -> None:
    ready = pod(container(ended(1)), conditions=[{"type": "Ready", "status": "True"}])
    assert is_ready(ready)
    assert trouble(ready, surge=False) is None


def test_readiness_is_what_the_pod_says() -> None:
    assert not is_ready(pod())
    assert not is_ready(pod(conditions=[{"type": "Ready", "status": "False"}]))
    assert not is_ready({"metadata": {"name": "p0"}})


@pytest.mark.parametrize(
    ("state", "going"),
    [
        ({"metadata": {}}, False),
        ({"metadata": {}, "status": {"phase": "Running"}}, False),
        ({"metadata": {"deletionTimestamp": "2026-11-23T10:00:00Z"}, "status": {"phase": "Running"}}, True),
        ({"metadata": {}, "status": {"phase": "Failed"}}, True),
        ({"metadata": {}, "status": {"phase": "Succeeded"}}, True),
    ],
)
def test_a_pod_goes_that_is_deleted_or_has_ended(state: dict[str, Any], going: bool) -> None:
    assert is_going(state) is going


def test_a_pod_that_no_node_takes_is_told_in_the_schedulers_words() -> None:
    seen = found(node="", conditions=[NO_ROOM])
    assert (seen.reason, seen.message) == ("Unschedulable", "no node takes pod p0: 3 Insufficient gpu.")


def test_a_new_replica_that_finds_no_spare_gpu_waits_for_one_and_the_next_step_is_named() -> None:
    seen = found(node="", conditions=[NO_ROOM], surge=True)
    assert seen.reason == "WaitsForSurge"
    assert "3 Insufficient gpu" in seen.message
    assert "maxSurge 0 and maxUnavailable 1" in seen.message


@pytest.mark.parametrize("why", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_named(why: str) -> None:
    seen = found(container(waiting(why, "no such tag")))
    assert seen.reason == "ImagePullFailed"
    assert f"container engine of pod p0 cannot be pulled ({why}: no such tag)" in seen.message


def test_a_secret_that_is_missing_is_told_in_kubernetes_words() -> None:
    agent = container(waiting("CreateContainerConfigError", 'secret "s3" not found'), name="agent")
    seen = found(initContainerStatuses=[agent])
    assert seen.reason == "ContainerConfigInvalid"
    assert 'container agent of pod p0 cannot start (CreateContainerConfigError: secret "s3" not found)' in seen.message


@pytest.mark.parametrize("state", [ended(64, '{"reason": "SourceChanged", "message": "it is not what it was"}')])
@pytest.mark.parametrize("again", [False, True], ids=["it has ended", "it waits to be started again"])
def test_what_a_container_has_recorded_is_its_reason(state: dict[str, Any], again: bool) -> None:
    model = container(waiting("CrashLoopBackOff") if again else state, state if again else None, "model")
    seen = found(initContainerStatuses=[model])
    assert (seen.reason, seen.message) == (
        "SourceChanged",
        "container model of pod p0 ended: it is not what it was",
    )


def test_an_init_container_that_ended_well_is_not_what_is_wrong() -> None:
    model = container(ended(0, '{"reason": "Fetched", "message": "it is here"}'), name="model")
    seen = found(container(ended(1, "ValueError: no such model type")), initContainerStatuses=[model])
    assert (seen.reason, seen.message) == (
        "EngineFailed",
        "container engine of pod p0 ended: code 1; its last words: ValueError: no such model type",
    )


def test_of_a_long_log_the_end_is_quoted() -> None:
    seen = found(container(ended(1, "x" * 5000 + "the end")))
    assert seen.message.endswith("the end")
    assert len(seen.message) < 600


@pytest.mark.parametrize("words", ["", "[1, 2]", '"text"', "{}", '{"reason": "R"}', "7", "null", "{"])
def test_words_that_are_no_record_are_a_log(words: str) -> None:
    seen = found(container(ended(2, words)))
    assert seen.reason == "EngineFailed"
    assert "ended: code 2" in seen.message
    assert words in seen.message


def test_who_was_killed_for_its_memory_has_nothing_else_to_say() -> None:
    record = json.dumps({"reason": "Fetched", "message": "m"})
    seen = found(container(waiting("CrashLoopBackOff"), ended(137, record, "OOMKilled")))
    assert seen.reason == "OutOfMemory"
    assert "compute.resources.limits.memory" in seen.message


def test_why_kubernetes_makes_no_pods_is_told_in_the_same_words_each_time() -> None:
    def deployment(said: str, status: str = "True") -> dict[str, Any]:
        condition = {"type": "ReplicaFailure", "status": status, "message": said}
        return {"metadata": {"name": "assistant-engine"}, "status": {"conditions": [condition]}}

    seen = refusal(deployment('pods "assistant-engine-7-abcde" is forbidden: exceeded quota: gpus'))
    assert seen == refusal(deployment('pods "assistant-engine-7-fghij" is forbidden: exceeded quota: gpus'))
    assert seen is not None
    assert (seen.holds, seen.reason) == (True, "PodRefused")
    assert "the pod is forbidden: exceeded quota: gpus" in seen.message
    assert refusal(deployment("over", "False")) is None
    assert refusal({"metadata": {"name": "assistant-engine"}}) is None
