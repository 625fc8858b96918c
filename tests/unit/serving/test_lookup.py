"""The Job that finds out what URIs mean, and what it says."""

import json
from typing import Any

import pytest

from lorikeet_api.names import MAX_DEPLOYMENT_NAME
from lorikeet_api.serving import RESOLVE_CONTRACT, ResolveContract, ResolveRecord, Unresolved
from lorikeet_operator.serving.lookup import lookup_job, said
from lorikeet_operator.serving.setup import Setup, settle
from tests.golden import check_golden
from tests.resources import deployment, profile
from tests.unit.finetune.test_job import files_of
from tests.unit.serving.test_engine_pods import EVERYTHING, EVERYTHING_PROFILE, is_restricted
from tests.unit.serving.test_setup import INSTALLED

ASK = ResolveContract(
    model=deployment().spec.model, adapters=[Unresolved(name="sql", uri="s3://adapters/$(AWS_SECRET_ACCESS_KEY)")]
)


def made(ask: ResolveContract = ASK, name: str = "assistant", setup: Setup | None = None, **spec: Any) -> Any:
    asks = deployment(name, **spec)
    return lookup_job(asks, setup or settle(asks, profile(), INSTALLED), ask, "1Gi")


@pytest.mark.parametrize("case", ["minimal", "everything"])
def test_the_job_that_looks_up_uris_is_the_golden_one(case: str) -> None:
    everything = case == "everything"
    asks = deployment(**EVERYTHING) if everything else deployment()
    setup = settle(asks, profile(**EVERYTHING_PROFILE) if everything else profile(), INSTALLED)
    check_golden(f"serving/lookup-{case}.yaml", [lookup_job(asks, setup, ASK, "1Gi")])


def test_the_agent_reads_the_very_question() -> None:
    files = files_of(made()["spec"]["template"])
    assert list(files) == [RESOLVE_CONTRACT]
    assert ResolveContract.model_validate_json(files[RESOLVE_CONTRACT]) == ASK


def test_another_question_is_another_job_and_the_same_one_is_not() -> None:
    other = ASK.model_copy(update={"model": None})
    assert made()["metadata"]["name"] == made()["metadata"]["name"]
    assert made()["metadata"]["name"] != made(other)["metadata"]["name"]


def test_the_name_of_the_longest_deployment_fits() -> None:
    assert len(made(name="a" * MAX_DEPLOYMENT_NAME)["metadata"]["name"]) <= 63, "it is a label of its pods"


def test_it_does_not_go_where_the_gpus_are() -> None:
    classes = [{"name": "a100", "nodeSelector": {"gpu": "a100"}}]
    asks = deployment(compute={"gpuClass": "a100", "runtimeClassName": "nvidia"})
    pod = made(setup=settle(asks, profile(gpuClasses=classes), INSTALLED))["spec"]["template"]["spec"]
    assert not pod.keys() & {"nodeSelector", "affinity", "runtimeClassName"}
    assert "nvidia.com/gpu" not in json.dumps(pod)


def test_it_may_run_in_a_restricted_namespace() -> None:
    is_restricted(made(model={"uri": "pvc://models/smollm2"})["spec"]["template"]["spec"])


def pod(message: str | None, time: str = "2026-11-23T10:00:00Z", code: int = 0) -> dict[str, Any]:
    """Return a pod of the Job; without a message it runs."""
    state = {"running": {}} if message is None else {"terminated": {"exitCode": code, "message": message}}
    return {"metadata": {"name": "p", "creationTimestamp": time}, "status": {"containerStatuses": [{"state": state}]}}


RECORD = ResolveRecord(reason="Resolved", message="1 of 1 adapters found", pin="a" * 64)
AWAY = ResolveRecord(reason="StorageUnreachable", message="nobody answers", retryable=True)


def test_a_job_whose_pod_has_not_ended_says_nothing() -> None:
    assert said([]) is None
    assert said([pod(None)]) is None
    assert said([{"metadata": {"name": "p"}, "status": {"phase": "Pending"}}]) is None


def test_what_was_found_is_read_from_the_pod() -> None:
    assert said([pod(RECORD.model_dump_json())]) == RECORD


def test_the_newest_pod_that_has_ended_counts() -> None:
    older = pod(AWAY.model_dump_json(), "2026-11-23T10:00:00Z", 70)
    newer = pod(RECORD.model_dump_json(), "2026-11-23T10:01:00Z")
    assert said([older, newer]) == said([newer, older]) == RECORD
    assert said([older, pod(None, "2026-11-23T10:01:00Z")]) == AWAY


@pytest.mark.parametrize("message", ["", "Traceback: …" + "x" * 4000, "{}", '{"reason": 1}', "null"])
def test_a_pod_that_ended_without_a_record_is_a_failure_that_may_pass(message: str) -> None:
    record = said([pod(message, code=137)])
    assert record is not None
    assert (record.reason, record.retryable) == ("InternalError", True)
    assert "ended with code 137" in record.message
    assert record.message.endswith(message[-300:].strip())
