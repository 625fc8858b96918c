"""What the API server says to wrong requests: each refusal names the field and the rule."""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.target import Target
from lorikeet_api.finetunejob import STEERED
from tests.resources import job_body, profile_body

pytestmark = pytest.mark.integration


@pytest.fixture
def namespace(server: Target) -> Iterator[str]:
    name = f"admission-{secrets.token_hex(3)}"
    server.kubectl("create", "namespace", name)
    yield name
    server.kubectl("delete", "namespace", name, "--wait=false")


def answer(server: Target, body: dict[str, Any], *arguments: str) -> str:
    """Return what kubectl says to applying `body`."""
    return server.kubectl("apply", "-f", "-", *arguments, stdin=json.dumps(body), check=False)


TRAIN = {"train": [{"uri": "s3://datasets/sql/train.jsonl"}]}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two methods": ({"method": {"lora": {}, "qlora": {}}}, r"spec\.method.*give exactly one method: full, lora, qlora"),
    "no method": ({"method": {}}, r"spec\.method.*give exactly one method"),
    "no objective": ({"objective": {}}, r"spec\.objective.*give exactly one objective"),
    "an unknown field": ({"modle": {}}, r'unknown field "spec\.modle"'),
    "an unknown field inside a union": ({"method": {"full": {"rank": 8}}}, r'unknown field "spec\.method\.full\.rank"'),
    "rank 0": ({"method": {"lora": {"rank": 0}}}, r"spec\.method\.lora\.rank.*greater than or equal to 1"),
    "a negative learning rate": ({"training": {"learningRate": -1}}, r"spec\.training\.learningRate.*greater than 0"),
    "no epochs": ({"training": {"epochs": 0}}, r"spec\.training\.epochs.*greater than 0"),
    "a micro batch that does not divide": (
        {"training": {"batchSize": 9, "microBatchSize": 2}},
        r"spec\.training.*microBatchSize must divide batchSize",
    ),
    "no data": ({"dataset": {"train": []}}, r"spec\.dataset\.train.*at least 1 items"),
    "two evaluation sets": (
        {"dataset": {**TRAIN, "eval": {"uri": "s3://datasets/e.jsonl"}, "evalFraction": 0.1}},
        r"give eval or evalFraction, not both",
    ),
    "some weights": (
        {"dataset": {"train": [{"uri": "s3://ddd/a", "weight": 1}, {"uri": "s3://ddd/b"}]}},
        r"give every training source a weight, or none",
    ),
    "columns of another format": (
        {"dataset": {**TRAIN, "format": "chat", "columns": {"prompt": "q"}}},
        r"format chat has only the columns messages",
    ),
    "a file path": ({"model": {"uri": "/models/llama"}}, r"spec\.model\.uri.*should match"),
    "our own variables": (
        {"compute": {"env": [{"name": "AWS_ACCESS_KEY_ID", "value": "x"}]}},
        r"this variable is set by Lorikeet",
    ),
    "a toleration without key": ({"compute": {"tolerations": [{"operator": "Equal"}]}}, r"needs operator Exists"),
    "a quantity that is none": ({"compute": {"scratch": "ten gigs"}}, r"spec\.compute\.scratch.*should match"),
    "label keys that are none": ({"compute": {"podLabels": {"a b": "c"}}}, r"keys are names as Kubernetes has them"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_refused_by_name(server: Target, namespace: str, what: str) -> None:
    spec, expected = WRONG[what]
    said = answer(server, job_body(namespace=namespace, **spec), "--dry-run=server")
    assert re.search(expected, said), said


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a" * 253, "at most 50 characters"), ("a" * 51, "at most 50 characters"), ("v1.2", "may not contain dots")],
)
def test_a_name_whose_children_would_not_fit_is_refused(
    server: Target, namespace: str, name: str, expected: str
) -> None:
    assert expected in answer(server, job_body(name, namespace), "--dry-run=server")


def test_the_longest_name_is_taken(server: Target, namespace: str) -> None:
    assert "created" in answer(server, job_body("a" * 50, namespace), "--dry-run=server")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": {"uri": "s3://models/other"}}, "model"),
        ({"training": {"epochs": 2}}, "training"),
        ({"method": {"lora": {}}}, "method"),
        ({"output": {"uri": "s3://adapters/elsewhere"}}, "output"),
        ({"compute": {"gpus": 0}}, "compute"),
    ],
)
def test_what_defines_the_run_cannot_change(server: Target, namespace: str, change: dict[str, Any], field: str) -> None:
    assert "created" in answer(server, job_body(namespace=namespace))
    said = answer(server, job_body(namespace=namespace, **change))
    assert f"{field} cannot change once the job exists: create a new FineTuneJob" in said


def test_an_optional_field_cannot_vanish_either(server: Target, namespace: str) -> None:
    output: dict[str, Any] = {"output": {"uri": "s3://adapters/mine"}}
    assert "created" in answer(server, job_body(namespace=namespace, **output))
    assert "output cannot change" in answer(server, job_body(namespace=namespace))


OTHERWISE: dict[str, Any] = {
    "maxRetries": 7,
    "maxPreemptions": 0,
    "suspend": True,
    "activeDeadlineSeconds": 60,
    "ttlSecondsAfterFinished": 0,
    "deletionPolicy": "Delete",
}


@pytest.mark.parametrize("field", STEERED)
def test_how_the_run_is_kept_may_change(server: Target, namespace: str, field: str) -> None:
    assert "created" in answer(server, job_body(namespace=namespace))
    assert "configured" in answer(server, job_body(namespace=namespace, **{field: OTHERWISE[field]}))
    assert "configured" in answer(server, job_body(namespace=namespace))


def test_the_servers_defaults_are_the_models(server: Target, namespace: str) -> None:
    assert "created" in answer(server, job_body(namespace=namespace))
    spec = server.get("-n", namespace, "finetunejob", "sql-v1")["spec"]
    assert spec["method"]["qlora"] == {
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "quantType": "nf4",
        "doubleQuant": True,
    }
    assert spec["profileRef"] == {"name": "default"}
    assert (spec["dataset"]["format"], spec["dataset"]["overlong"], spec["maxRetries"]) == ("auto", "drop", 3)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"storage": {"secretName": "a", "serviceAccountName": "b"}},
            "give secretName or serviceAccountName, not both",
        ),
        ({"gpuClasses": [{"name": "a"}, {"name": "a"}]}, "Duplicate value"),
        ({"storage": {"uri": "http://adapters"}}, "spec.storage.uri"),
    ],
)
def test_a_wrong_profile_is_refused_by_name(server: Target, spec: dict[str, Any], expected: str) -> None:
    name = f"wrong-{secrets.token_hex(3)}"
    assert expected in answer(server, profile_body(name, **spec), "--dry-run=server")


def test_explain_tells_the_defaults(server: Target) -> None:
    said = " ".join(server.kubectl("explain", "finetunejob.spec.training.learningRate").split())
    assert "Default: 0.0002 (lora sft, qlora sft), 1e-05 (full sft)." in said
