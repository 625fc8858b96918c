"""The objects of a run, held against golden files."""

from typing import Any

import pytest

from lorikeet_api.contract import CONTRACT_PATH, RunContract
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.names import MAX_JOB_NAME, Task
from lorikeet_api.progress import CA_VARIABLE
from lorikeet_operator.finetune.agent import agent_job
from lorikeet_operator.finetune.job import ProgressEndpoint, training_job
from lorikeet_operator.finetune.resolve import resolve
from tests.golden import check_golden
from tests.resources import UID, job, job_body, profile

EVERYTHING: dict[str, Any] = {
    "model": {"uri": "hf://mistralai/Mistral-7B-v0.1", "revision": "abc123", "secretRef": {"name": "hf-token"}},
    "dataset": {
        "train": [
            {"uri": "pvc://corpora/chat.jsonl", "weight": 0.9},
            {"uri": "s3://datasets/general/", "weight": 0.1},
        ],
        "evalFraction": 0.05,
        "test": {"uri": "pvc://exams/chat.jsonl"},
        "format": "chat",
        "trainOn": "lastTurn",
        "packing": True,
    },
    "method": {"lora": {"rank": 8}},
    "training": {"batchSize": 6},
    "tracking": {
        "mlflow": {"uri": "https://mlflow.team-a.svc", "secretRef": {"name": "mlflow"}},
        "wandb": {"project": "chat", "secretRef": {"name": "wandb"}},
    },
    "compute": {
        "gpuClass": "a100",
        "resources": {"requests": {"cpu": 4}, "limits": {"memory": "32Gi"}},
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]
                }
            }
        },
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "imagePullSecrets": [{"name": "pull"}],
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podLabels": {"team": "a", "app.kubernetes.io/name": "mine"},
        "podAnnotations": {"note": "x"},
        "terminationGracePeriodSeconds": 300,
        "sharedMemory": "8Gi",
        "scratch": "100Gi",
    },
    "maxRetries": 1,
}
CLASSES = [{"name": "a100", "nodeSelector": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}]


@pytest.mark.parametrize("case", ["minimal", "everything"])
def test_the_objects_of_a_run_are_the_golden_ones(case: str) -> None:
    request = job() if case == "minimal" else job(**EVERYTHING)
    storage = {"uri": "s3://adapters", "secretName": "s3-credentials", "caConfigMapName": "company-ca"}
    by = profile() if case == "minimal" else profile(storage=storage, gpuClasses=CLASSES)
    resolved = resolve(request, by, "trainer:test")
    # The longer one tells its progress, too.
    endpoint = ProgressEndpoint("https://lorikeet-progress.lorikeet-system.svc", "PEM") if case != "minimal" else None
    made = [
        agent_job(request, resolved, "preflight", "agent:test"),
        training_job(request, resolved, endpoint),
    ]
    check_golden(f"finetune/{case}.yaml", made)


def test_building_twice_gives_equal_objects() -> None:
    resolved = resolve(job(), profile(), "trainer:test")
    assert training_job(job(), resolved) == training_job(job(), resolved)


def pod_of(made: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = made["spec"]["template"]
    return pod


def files_of(pod: dict[str, Any]) -> dict[str, str]:
    """Return the files that the pod's annotations are for its one container, by path."""
    (container,) = pod["spec"]["containers"]
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    return {
        f"{folders[volume['name']]}/{item['path']}": pod["metadata"]["annotations"][
            item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
        ]
        for volume in pod["spec"]["volumes"]
        for item in volume.get("downwardAPI", {}).get("items", [])
    }


@pytest.mark.parametrize("uri", ["s3://datasets/a.jsonl", "s3://datasets/$(AWS_SECRET_ACCESS_KEY).jsonl"])
def test_trainer_and_agent_read_the_contract_that_the_operator_resolved(uri: str) -> None:
    request = job(dataset={"train": [{"uri": uri}]})
    resolved = resolve(request, profile(), "trainer:test")
    for made in (agent_job(request, resolved, "preflight", "agent:test"), training_job(request, resolved)):
        files = files_of(pod_of(made))
        assert list(files) == [CONTRACT_PATH]
        assert RunContract.model_validate_json(files[CONTRACT_PATH]) == resolved.contract


def test_a_trainer_knows_the_endpoint_by_a_file_beside_the_contract() -> None:
    endpoint = ProgressEndpoint("https://lorikeet-progress.lorikeet-system.svc", "PEM")
    pod = pod_of(training_job(job(), resolve(job(), profile(), "trainer:test"), endpoint))
    (file,) = [each["value"] for each in pod["spec"]["containers"][0]["env"] if each["name"] == CA_VARIABLE]
    assert files_of(pod)[file] == "PEM"


def test_users_cannot_take_over_our_annotations() -> None:
    request = job(compute={"podAnnotations": {"lorikeet.dev/contract": "{}", "mine": "stays"}})
    resolved = resolve(request, profile(), "trainer:test")
    pod = pod_of(training_job(request, resolved))
    assert RunContract.model_validate_json(files_of(pod)[CONTRACT_PATH]) == resolved.contract
    assert pod["metadata"]["annotations"]["mine"] == "stays"


@pytest.mark.parametrize("task", ["preflight", "recover", "cleanup"])
def test_the_names_of_the_longest_job_fit(task: Task) -> None:
    body = job_body("a" * MAX_JOB_NAME)
    body["metadata"]["uid"] = UID
    request = FineTuneJob.parse(body)
    resolved = resolve(request, profile(), "trainer:test")
    for made in (agent_job(request, resolved, task, "agent:test"), training_job(request, resolved)):
        assert len(made["metadata"]["name"]) <= 63, "it is a label of its pods"


def test_users_cannot_take_over_our_labels() -> None:
    request = job(compute={"podLabels": {"app.kubernetes.io/managed-by": "me", "lorikeet.dev/finetunejob": "other"}})
    labels = training_job(request, resolve(request, profile(), "trainer:test"))["spec"]["template"]["metadata"][
        "labels"
    ]
    assert labels["app.kubernetes.io/managed-by"] == "lorikeet"
    assert labels["lorikeet.dev/finetunejob"] == "sql-v1"


def test_no_credential_value_is_ever_in_an_object() -> None:
    resolved = resolve(job(), profile(), "trainer:test")
    env = training_job(job(), resolved)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert all("value" not in variable for variable in env if "KEY" in variable["name"] or "TOKEN" in variable["name"])
    assert "secretKeyRef" not in resolved.contract.model_dump_json()


@pytest.mark.parametrize("given", [{}, {"wandb": {"project": "p", "mode": "offline"}, "tensorboard": {}}])
def test_trackers_that_need_no_key_get_none(given: dict[str, Any]) -> None:
    request = job(tracking=given)
    resolved = resolve(request, profile(), "t")
    env = pod_of(training_job(request, resolved))["spec"]["containers"][0]["env"]
    assert env == pod_of(training_job(job(), resolve(job(), profile(), "t")))["spec"]["containers"][0]["env"]


def test_the_pods_that_do_not_train_get_no_key_of_a_tracker() -> None:
    request = job(**EVERYTHING)
    resolved = resolve(request, profile(gpuClasses=CLASSES), "t")
    env = pod_of(agent_job(request, resolved, "preflight", "agent:test"))["spec"]["containers"][0]["env"]
    assert not [each for each in env if each["name"].startswith(("MLFLOW_", "WANDB_"))]


def test_a_run_without_gpus_asks_for_none() -> None:
    request = job(compute={"gpus": 0})
    container = training_job(request, resolve(request, profile(), "t"))["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"] == {"requests": {"cpu": "1", "memory": "2Gi"}}
