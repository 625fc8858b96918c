"""Wrong requests on the whole cluster: each ends in a condition that names the cause and the fix."""

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from e2e.target import Target
from e2e.workspace import SECRET, Workspace, condition, profile
from tests.bad_input import BAD_ROWS, BadRows
from tests.trainer import tiny

pytestmark = pytest.mark.e2e

GOOD_ROW = b'{"prompt": "How many users are there?", "completion": "SELECT COUNT(*) FROM users;"}\n'
MODEL = "s3://models/smollm2-135m-instruct"
DATA = "s3://datasets/text-to-sql/train.jsonl"


def request(name: str, data: str = DATA, model: str = MODEL, **spec: Any) -> dict[str, Any]:
    """Return a job that would train one step if nothing were wrong with it."""
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": model},
            "dataset": {"train": [{"uri": data}]},
            "training": {"maxSteps": 1},
            "maxRetries": 0,
            **spec,
        },
    }


def put(workspace: Workspace, name: str, content: bytes) -> str:
    key = f"{workspace.namespace}/{name}"
    workspace.s3.put_object(Bucket="datasets", Key=key, Body=content)
    return f"s3://datasets/{key}"


SAID_WITHIN = 15.0
"""Seconds from `kubectl apply` until what can be known without a GPU is said."""


@contextmanager
def said(what: str, within: float = SAID_WITHIN) -> Iterator[None]:
    """Take the time from `kubectl apply` until a mistake is said, for the table in bench/README.md."""
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    print(f"said: {what}: {seconds:.1f} s")
    assert seconds < within


@dataclass(frozen=True)
class Case:
    """A job that must be refused, before a GPU is asked for unless only torch can tell."""

    make: Callable[[Workspace], dict[str, Any]]
    reason: str
    message: str
    by_trainer: bool = False


def model_without_config(workspace: Workspace) -> dict[str, Any]:
    workspace.bucket("models")
    workspace.s3.put_object(Bucket="models", Key=f"{workspace.namespace}/weights.safetensors", Body=b"0" * 64)
    return request("no-config", model=f"s3://models/{workspace.namespace}")


def model_with_broken_tokenizer(workspace: Workspace) -> dict[str, Any]:
    prefix = f"{workspace.namespace}/broken"
    with tempfile.TemporaryDirectory() as name:
        folder = tiny.write_model(Path(name) / "model")
        (folder / "tokenizer.json").write_text("{")
        workspace.upload_folder(folder, "models", prefix)
    return request("no-tokenizer", model=f"s3://models/{prefix}")


def bad_rows(bad: BadRows, workspace: Workspace) -> dict[str, Any]:
    prefix = f"{workspace.namespace}/tiny"
    with tempfile.TemporaryDirectory() as name:
        workspace.upload_folder(tiny.write_model(Path(name) / "model", bad.template), "models", prefix)
    data = put(workspace, "rows.jsonl", tiny.jsonl(bad.rows))
    body = request("bad-rows", data, f"s3://models/{prefix}", **bad.spec)
    body["spec"]["dataset"] = {"train": [{"uri": data}], **bad.spec.get("dataset", {})}
    return body


def wrong_credentials(workspace: Workspace) -> dict[str, Any]:
    wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "wrong-secret"}
    workspace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": wrong})
    return request("refused")


def foreign_output(workspace: Workspace) -> dict[str, Any]:
    """Ask for an output whose run folder holds somebody's notes; the run's id is known from a job like it."""
    uri = f"s3://adapters/{workspace.namespace}/shared"
    workspace.apply(request("like-it", output={"uri": uri}))
    status = workspace.wait("like-it", lambda status: "resolved" in status, "resolution", 30)["status"]
    run_id = status["resolved"]["contract"]["runId"]
    workspace.kubectl("delete", "finetunejob", "like-it")
    prefix = f"{workspace.namespace}/other/{run_id}"
    workspace.s3.put_object(Bucket="adapters", Key=f"{prefix}/notes.txt", Body=b"mine")
    return request("foreign", output={"uri": f"s3://adapters/{workspace.namespace}/other"})


TOLD_HERE = ("a preference without a rejected answer", "prompts that are longer than maxLength")
"""`tests/trainer/test_bad_input.py` has the others, too: agent, trainer and command say the same of each."""

CASES = {
    "data that is not there": Case(
        lambda w: request("no-data", "s3://datasets/nowhere/train.jsonl"),
        "DataNotFound",
        r"s3://datasets/nowhere/train\.jsonl",
    ),
    "a bucket that is not there": Case(
        lambda w: request("no-bucket", "s3://no-such-bucket/train.jsonl"), "DataNotFound", r"no-such-bucket"
    ),
    "an empty file": Case(
        lambda w: request("empty", put(w, "empty.jsonl", b"")),
        "DataInvalid",
        r"empty\.jsonl.*empty|empty.*empty\.jsonl",
    ),
    "line 37 is not JSON": Case(
        lambda w: request("bad-line", put(w, "bad.jsonl", GOOD_ROW * 36 + b'{"prompt": oops}\n' + GOOD_ROW)),
        "DataInvalid",
        r"bad\.jsonl.*line 37|bad\.jsonl:37",
    ),
    "a row without its columns": Case(
        lambda w: request("no-column", put(w, "cols.jsonl", GOOD_ROW * 4 + b'{"prompt": "only"}\n')),
        "DataInvalid",
        r"(line 5|:5).*completion",
    ),
    "text that is not UTF-8": Case(
        lambda w: request("latin", put(w, "latin.jsonl", GOOD_ROW + b'{"prompt": "caf\xe9", "completion": "x"}\n')),
        "DataInvalid",
        r"UTF-8",
    ),
    "an output that another run's files are in": Case(foreign_output, "OutputConflict", r"notes\.txt"),
    "a model without config.json": Case(model_without_config, "ModelInvalid", r"config\.json"),
    "a model that is not there": Case(
        lambda w: request("no-model", model="s3://models/nowhere"), "ModelNotFound", r"s3://models/nowhere"
    ),
    "a model whose tokenizer cannot be read": Case(model_with_broken_tokenizer, "ModelInvalid", r"tokenizer"),
    "wrong credentials": Case(wrong_credentials, "StorageRefused", r"secret|key"),
    "an output bucket that is not there": Case(
        lambda w: request("no-output", output={"uri": "s3://no-such-output/x"}), "StorageRefused", r"no-such-output"
    ),
    "modules that the model does not have": Case(
        lambda w: request("no-module", method={"lora": {"targetModules": ["nonesuch"]}}),
        "MethodNotApplicable",
        r"nonesuch.*q_proj",
        by_trainer=True,
    ),
    **{what: Case(partial(bad_rows, BAD_ROWS[what]), "DataInvalid", BAD_ROWS[what].message) for what in TOLD_HERE},
}


@pytest.mark.parametrize("what", CASES)
def test_it_is_refused_with_cause_and_fix(workspace: Workspace, what: str) -> None:
    case = CASES[what]
    body = case.make(workspace)
    # The first trainer of a cluster waits until the node has its image, beside the engines' scenarios for theirs.
    with said(what, 480 if case.by_trainer else SAID_WITHIN):
        workspace.apply(body)
        status = workspace.wait_final(body["metadata"]["name"], 480)["status"]
    failed = condition(status, "Failed")
    assert (status["phase"], failed["reason"]) == ("Failed", case.reason), failed
    assert re.search(case.message, failed["message"], re.DOTALL), failed["message"]
    if case.by_trainer:
        assert status["attempts"] == 1
    else:
        assert status.get("attempts", 0) == 0
        assert "jobUid" not in status


def wait_for(workspace: Workspace, name: str, kind: str, reason: str, seconds: float = 120) -> dict[str, Any]:
    """Wait until a condition is False with a reason; return the condition."""

    def there(status: dict[str, Any]) -> bool:
        found = condition(status, kind)
        return bool(found["reason"] == reason and found["status"] == "False")

    return condition(workspace.wait(name, there, f"{kind}=False ({reason})", seconds)["status"], kind)


def test_a_missing_profile_is_named_and_the_job_starts_once_it_is_there(workspace: Workspace) -> None:
    name = f"profile-{workspace.namespace}"
    with said("a profile that is not there"):
        workspace.apply(request("waits", profileRef={"name": name}))
        message = wait_for(workspace, "waits", "Validated", "ProfileNotFound")["message"]
    assert name in message
    assert "default" in message
    workspace.target.apply([profile(workspace.target, name)])
    try:
        workspace.wait("waits", lambda status: bool(status.get("jobUid")), "batch Job", 30)
    finally:
        workspace.target.kubectl("delete", "tuningprofile", name)


def test_a_missing_secret_is_named_and_the_job_starts_once_it_is_there(workspace: Workspace) -> None:
    secret = json.loads(workspace.kubectl("get", "secret", SECRET, "-o", "json"))
    workspace.kubectl("delete", "secret", SECRET)
    with said("a Secret that is not there"):
        workspace.apply(request("no-secret"))
        message = wait_for(workspace, "no-secret", "Validated", "ContainerConfigInvalid")["message"]
    assert SECRET in message
    again = {**secret, "metadata": {"name": SECRET}}
    workspace.kubectl("apply", "-f", "-", stdin=json.dumps(again))
    workspace.wait("no-secret", lambda status: status.get("phase") in ("Running", "Succeeded"), "start", 180)


def test_a_ca_bundle_that_is_missing_in_the_namespace_is_named(workspace: Workspace) -> None:
    body = profile(workspace.target, f"ca-{workspace.namespace}")
    body["spec"]["storage"]["caConfigMapName"] = "company-ca"
    workspace.target.apply([body])
    try:
        with said("a CA bundle that is not there"):
            workspace.apply(request("no-ca", profileRef={"name": body["metadata"]["name"]}))
            message = wait_for(workspace, "no-ca", "Validated", "PodNotPrepared")["message"]
        assert 'configmap "company-ca" not found' in message
        job = json.loads(workspace.kubectl("get", "finetunejob", "no-ca", "-o", "json"))
        assert job["status"]["message"] == message
    finally:
        workspace.target.kubectl("delete", "tuningprofile", body["metadata"]["name"])


def test_a_store_that_nobody_answers_for_is_named_and_tried_again(workspace: Workspace) -> None:
    body = profile(workspace.target, f"away-{workspace.namespace}")
    body["spec"]["storage"]["endpoint"] = "http://nobody.lorikeet-s3.svc:7070"
    workspace.target.apply([body])
    try:
        with said("a store that nobody answers for"):
            workspace.apply(request("no-store", profileRef={"name": body["metadata"]["name"]}))
            job = workspace.wait(
                "no-store", lambda status: "nobody.lorikeet-s3" in status.get("message", ""), "word of the store", 60
            )
        assert "made again shortly" in job["status"]["message"]
        assert job["status"]["phase"] == "Validating"
    finally:
        workspace.target.kubectl("delete", "tuningprofile", body["metadata"]["name"])


def test_an_image_that_does_not_exist_is_named(workspace: Workspace) -> None:
    workspace.apply(request("no-image", compute={"image": "lorikeet.local/nowhere:1"}))
    assert "lorikeet.local/nowhere:1" in wait_for(workspace, "no-image", "Started", "ImagePullFailed")["message"]


def test_the_schedulers_words_reach_the_user(workspace: Workspace) -> None:
    workspace.apply(request("no-node", compute={"nodeSelector": {"gpu": "none-such"}}))
    assert "affinity/selector" in wait_for(workspace, "no-node", "Scheduled", "Unschedulable")["message"]


def test_a_quota_that_is_used_up_is_named(workspace: Workspace) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "gpus"},
        "spec": {"hard": {"requests.nvidia.com/gpu": "0"}},
    }
    workspace.apply(quota)
    workspace.apply(request("no-quota"))
    assert "exceeded quota: gpus" in wait_for(workspace, "no-quota", "Scheduled", "PodRefused")["message"]


def test_a_childs_name_that_somebody_else_holds_is_left_alone(workspace: Workspace) -> None:
    theirs = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "mine-train"},
        "spec": {
            "suspend": True,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "none"}]}},
        },
    }
    workspace.apply(theirs)
    before = json.loads(workspace.kubectl("get", "job", "mine-train", "-o", "json"))["metadata"]
    workspace.apply(request("mine"))
    assert "mine-train" in wait_for(workspace, "mine", "Validated", "NameTaken")["message"]
    after = json.loads(workspace.kubectl("get", "job", "mine-train", "-o", "json"))["metadata"]
    assert after["resourceVersion"] == before["resourceVersion"]


def test_a_container_that_runs_out_of_memory_is_told_what_to_lower(workspace: Workspace) -> None:
    small = {"resources": {"requests": {"memory": "300Mi"}, "limits": {"memory": "400Mi"}}}
    workspace.apply(request("too-small", compute=small))
    failed = condition(workspace.wait_final("too-small", 240)["status"], "Failed")
    assert failed["reason"] == "OutOfMemory", failed
    assert "microBatchSize" in failed["message"]


def test_no_operator_restart_was_needed(lorikeet: Target) -> None:
    pods = lorikeet.get("-n", "lorikeet-system", "pods")["items"]
    assert {pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods} == {0}
