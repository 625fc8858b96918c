"""What the API server says to wrong requests: each refusal names the field and the rule."""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.target import Target
from lorikeet_api.finetunejob import STEERED
from lorikeet_api.modeldeployment import ModelDeployment
from tests.resources import deployment_body, job_body, profile_body
from tests.unit.serving import test_engine_pods, test_router_pods

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

MATCH: dict[str, Any] = {"match": {"column": "answer"}}

EARLIER = {"from": {"fineTuneJobRef": {"name": "sft-v1"}}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "neptune": (
        {"tracking": {"neptune": {"project": "team/llm", "apiToken": "x"}}},
        r"spec\.tracking.*Neptune's service ended in March 2026",
    ),
    "wandb without a key": ({"tracking": {"wandb": {"project": "p"}}}, r"spec\.tracking\.wandb.*needs secretRef"),
    "wandb offline with a server": (
        {"tracking": {"wandb": {"project": "p", "mode": "offline", "baseUrl": "https://wandb.example"}}},
        r"spec\.tracking\.wandb.*asks no server",
    ),
    "a password in a tracker's address": (
        {"tracking": {"mlflow": {"uri": "http://me:secret@mlflow"}}},
        r"spec\.tracking\.mlflow\.uri.*should match",
    ),
    "two methods": (
        {"method": {"lora": {}, "qlora": {}}},
        r"spec\.method.*give exactly one method: full, lora, qlora, bottleneck",
    ),
    "no method": ({"method": {}}, r"spec\.method.*give exactly one method"),
    "no model": ({"model": {}}, r"spec\.model.*give exactly one of uri and from"),
    "two models": (
        {"model": {"uri": "s3://models/base", **EARLIER}},
        r"spec\.model.*give exactly one of uri and from",
    ),
    "a revision of an earlier job": (
        {"model": {**EARLIER, "revision": "v1"}},
        r"spec\.model\.revision.*only hf:// sources have revisions",
    ),
    "an earlier job without a name": (
        {"model": {"from": {"fineTuneJobRef": {}}}},
        r"spec\.model\.from\.fineTuneJobRef\.name: Required value",
    ),
    "an earlier job of another kind": (
        {"model": {"from": {"uri": "s3://adapters/x"}}},
        r'unknown field "spec\.model\.from\.uri"',
    ),
    "itself": (
        {"model": {"from": {"fineTuneJobRef": {"name": "sql-v1"}}}},
        r"names itself as one that it waits for: name an earlier one",
    ),
    "a secret without effect": (
        {"model": {"uri": "s3://models/base", "secretRef": {"name": "hf-token"}}},
        r"model\.secretRef opens hf:// sources, and there is none",
    ),
    "no objective": ({"objective": {}}, r"spec\.objective.*give exactly one objective"),
    "an unknown field": ({"modle": {}}, r'unknown field "spec\.modle"'),
    "an unknown field inside a union": ({"method": {"full": {"rank": 8}}}, r'unknown field "spec\.method\.full\.rank"'),
    "rank 0": ({"method": {"lora": {"rank": 0}}}, r"spec\.method\.lora\.rank.*greater than or equal to 1"),
    "all linear layers and one more": (
        {"method": {"lora": {"targetModules": ["all-linear", "q_proj"]}}},
        r"spec\.method\.lora\.targetModules.*all-linear has all others in it",
    ),
    "a layer that is trained twice": (
        {"method": {"qlora": {"targetModules": ["up_proj"], "modulesToSave": ["up_proj"]}}},
        r"spec\.method\.qlora\.modulesToSave.*trained by one of them",
    ),
    "dora on parts of the base": (
        {"method": {"lora": {"init": "pissa", "dropout": 0, "dora": True}}},
        r"spec\.method\.lora\.init.*dora begins at the base's own weights",
    ),
    "dropout of parts of the base": (
        {"method": {"lora": {"init": "olora"}}},
        r"spec\.method\.lora\.dropout.*set dropout to 0",
    ),
    "whole layers beside a difference": (
        {"method": {"lora": {"init": "olora", "dropout": 0, "modulesToSave": ["norm"]}}},
        r"spec\.method\.lora.*whole layers",
    ),
    "two objectives": ({"objective": {"sft": {}, "dpo": {}}}, r"spec\.objective.*give exactly one objective: sft, dpo"),
    "conversations for dpo": (
        {"objective": {"dpo": {}}, "dataset": {**TRAIN, "format": "chat"}},
        r"objective dpo learns from rows of the format preference, or auto",
    ),
    "preferences for sft": (
        {"dataset": {**TRAIN, "format": "preference"}},
        r"objective sft learns from rows of the format instruction or chat or completion or text, or auto",
    ),
    "a general set for a reward model": (
        {"objective": {"reward": {}}, "dataset": {**TRAIN, "general": {"uri": "s3://datasets/chat.jsonl"}}},
        r"a reward model writes nothing.*remove dataset\.general",
    ),
    "tokens to count for a reward model": (
        {"objective": {"reward": {}}, "dataset": {**TRAIN, "trainOn": "all"}},
        r"dataset\.trainOn is for objective sft",
    ),
    "noise on packed examples": (
        {"objective": {"sft": {"neftuneAlpha": 5}}, "dataset": {**TRAIN, "packing": True}},
        r"neftuneAlpha sets noise by the length of an example, which dataset\.packing hides",
    ),
    "a guard against overfitting that sees no held-out examples": (
        {"training": {"signs": {"failOn": ["Overfitting"]}}},
        r"training\.signs\.failOn Overfitting needs dataset\.eval or dataset\.evalFraction",
    ),
    "a guard against repetition for a model that answers nothing": (
        {
            "objective": {"reward": {}},
            "dataset": {**TRAIN, "evalFraction": 0.1},
            "training": {"signs": {"failOn": ["Repetition"]}},
        },
        r"objective reward does not show that sign",
    ),
    "packing for kto": (
        {"objective": {"kto": {}}, "dataset": {**TRAIN, "packing": True}},
        r"dataset\.packing is for objective sft",
    ),
    "columns of a conversation for dpo": (
        {"objective": {"dpo": {}}, "dataset": {**TRAIN, "columns": {"messages": "mine"}}},
        r"rows of objective dpo have only the columns prompt, chosen, rejected, system, tools",
    ),
    "a bottleneck for kto": (
        {"objective": {"kto": {}}, "method": {"bottleneck": {}}},
        r"method bottleneck is for objective sft",
    ),
    "parts of the base for dpo": (
        {"objective": {"dpo": {}}, "method": {"lora": {"init": "olora", "dropout": 0}}},
        r"init pissa and olora are for objective sft",
    ),
    "smoothing without its loss": (
        {"objective": {"dpo": {"labelSmoothing": 0.1}}},
        r"spec\.objective\.dpo.*labelSmoothing belongs to loss robust",
    ),
    "a robust loss without smoothing": (
        {"objective": {"dpo": {"loss": "robust"}}},
        r"spec\.objective\.dpo.*labelSmoothing belongs to loss robust",
    ),
    "no reward": (
        {"objective": {"rlhf": {"rewards": []}}},
        r"spec\.objective\.rlhf\.rewards.*give at least one reward: model, regex, jsonSchema or match",
    ),
    "no rewards at all": (
        {"objective": {"rlhf": {}}},
        r"spec\.objective\.rlhf\.rewards.*give at least one reward: model, regex, jsonSchema or match",
    ),
    "two rewards in one": (
        {"objective": {"rlhf": {"rewards": [{**MATCH, "regex": {"pattern": "a"}}]}}},
        r"spec\.objective\.rlhf\.rewards\[0\].*give exactly one reward: model, regex, jsonSchema, match",
    ),
    "a reward model of no origin": (
        {"objective": {"rlhf": {"rewards": [{"model": {}}]}}},
        r"spec\.objective\.rlhf\.rewards\[0\]\.model.*give exactly one of uri and fineTuneJobRef",
    ),
    "itself as its reward model": (
        {"objective": {"rlhf": {"rewards": [{"model": {"fineTuneJobRef": {"name": "sql-v1"}}}]}}},
        r"names itself as one that it waits for",
    ),
    "answers that cannot be shared out": (
        {"objective": {"rlhf": {"rewards": [MATCH]}}, "training": {"batchSize": 12}},
        r"make it a multiple of objective\.rlhf\.numGenerations",
    ),
    "prompts that are cut": (
        {"objective": {"rlhf": {"rewards": [MATCH]}}, "dataset": {**TRAIN, "overlong": "truncate"}},
        r"a prompt that is cut at its end asks for nothing",
    ),
    "parts of a base in 4 bits": (
        {"method": {"qlora": {"init": "pissa"}}},
        r'unknown field "spec\.method\.qlora\.init"',
    ),
    "a negative learning rate": ({"training": {"learningRate": -1}}, r"spec\.training\.learningRate.*greater than 0"),
    "no epochs": ({"training": {"epochs": 0}}, r"spec\.training\.epochs.*greater than 0"),
    "a micro batch that does not divide": (
        {"training": {"batchSize": 9, "microBatchSize": 2}},
        r"spec\.training.*microBatchSize must divide batchSize",
    ),
    "early stopping without an evaluation": (
        {"training": {"earlyStopping": {"patience": 2}}},
        r"training\.earlyStopping needs dataset\.eval or dataset\.evalFraction",
    ),
    "the best weights without an evaluation": (
        {"training": {"publish": "best"}},
        r"training\.publish best needs dataset\.eval",
    ),
    "a best checkpoint without an evaluation": (
        {"training": {"checkpoints": {"afterSuccess": "keepBest"}}},
        r"afterSuccess keepBest needs dataset\.eval",
    ),
    "a precision of GPUs alone on a CPU": (
        {"training": {"precision": "fp16"}, "compute": {"gpus": 0}},
        r"precision fp16, attention flash and kernels liger need a GPU",
    ),
    "an attention of GPUs alone on a CPU": (
        {"training": {"attention": "flash"}, "compute": {"gpus": 0}},
        r"precision fp16, attention flash and kernels liger need a GPU",
    ),
    "kernels of GPUs alone on a CPU": (
        {"training": {"kernels": "liger"}, "compute": {"gpus": 0}},
        r"precision fp16, attention flash and kernels liger need a GPU",
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
    "a split outside the hub": (
        {"dataset": {"train": [{"uri": "s3://datasets/sql", "split": "train"}]}},
        r"spec\.dataset\.train\[0\].*subset and split are of a whole data set",
    ),
    "a subset of a folder of the hub": (
        {"dataset": {**TRAIN, "eval": {"uri": "hf://org/name/en", "subset": "en"}}},
        r"spec\.dataset\.eval.*subset and split are of a whole data set",
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
        ({"model": EARLIER}, "model"),
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


@pytest.mark.parametrize(
    "spec",
    [
        {"model": EARLIER},
        {"model": {**EARLIER, "secretRef": {"name": "hf-token"}}},
        {"model": EARLIER, "method": {"lora": {"rank": 8}}},
    ],
)
def test_a_job_that_goes_on_from_another_is_taken(server: Target, namespace: str, spec: dict[str, Any]) -> None:
    assert "created" in answer(server, job_body(namespace=namespace, **spec), "--dry-run=server")


def test_a_method_that_was_left_open_stays_open(server: Target, namespace: str) -> None:
    assert "created" in answer(server, job_body(namespace=namespace))
    assert "method" not in json.loads(server.kubectl("get", "ftj", "sql-v1", "-n", namespace, "-o", "json"))["spec"]


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
    assert "created" in answer(server, job_body(namespace=namespace, method={"qlora": {}}))
    spec = server.get("-n", namespace, "finetunejob", "sql-v1")["spec"]
    assert spec["method"]["qlora"] == {
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "rsLora": False,
        "dora": False,
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
    assert "Default: 0.0002 (lora sft, qlora sft), 0.0001 (bottleneck sft, lora reward, qlora reward), " in said


ADAPTER: dict[str, Any] = {"name": "sql", "from": {"fineTuneJobRef": {"name": "sql-v1"}}}
PIN = "a" * 64


def routes(*variants: dict[str, Any]) -> dict[str, Any]:
    """Return adapters, and one model of these variants."""
    return {"adapters": [ADAPTER], "routes": [{"model": "support", "variants": list(variants)}]}


def adapter(name: str = "sql", **origin: Any) -> dict[str, Any]:
    """Return adapters: one of this origin."""
    return {"adapters": [{"name": name, "from": origin}]}


def vllm(**settings: Any) -> dict[str, Any]:
    """Return the engine with these settings."""
    return {"engine": {"vllm": settings}}


UNDEPLOYABLE: dict[str, tuple[dict[str, Any], str]] = {
    "weights that sum to 0": (
        routes({"name": "a", "adapter": "sql", "weight": 0}, {"name": "b", "weight": 0}),
        r"spec\.routes\[0\]\.variants.*give at least one variant a weight above 0",
    ),
    "a negative weight": (
        routes({"name": "a", "weight": -1}, {"name": "b"}),
        r"spec\.routes\[0\]\.variants\[0\]\.weight.*greater than or equal to 0",
    ),
    "no variants": (routes(), r"spec\.routes\[0\]\.variants.*at least 1 items"),
    "a variant of no adapter": (
        routes({"name": "a", "adapter": "sql-v2"}),
        r"spec\.routes.*a variant names an adapter that is not in adapters",
    ),
    "a variant though there are no adapters": (
        {"routes": routes({"name": "a", "adapter": "sql"})["routes"]},
        r"spec\.routes.*a variant names an adapter that is not in adapters",
    ),
    "a flag of ours": (vllm(args=["--port", "1"]), r"spec\.engine\.vllm\.args.*args may not set what Lorikeet sets"),
    "a flag of ours with its value": (vllm(args=["--api-key=x"]), r"args may not set what Lorikeet sets"),
    "a flag of ours in its other spelling": (vllm(args=["--served_model_name=x"]), r"args may not set what Lorikeet"),
    "a flag of ours cut short": (vllm(args=["--middlewar=x"]), r"args may not set what Lorikeet"),
    "a flag of a family of ours": (vllm(args=["-dpn", "2"]), r"what begins with --ssl-, --grpc, --data-parallel-, -dp"),
    "a variable that opens an engine": (
        {"compute": {"env": [{"name": "VLLM_USE_RUST_FRONTEND", "value": "1"}]}},
        r"spec\.compute\.env\[0\].*this variable is set by Lorikeet",
    ),
    "two adapters of one name": ({"adapters": [ADAPTER, ADAPTER]}, r"spec\.adapters\[1\].*Duplicate value"),
    "two variants of one name": (routes({"name": "a"}, {"name": "a"}), r"variants\[1\].*Duplicate value"),
    "two routes of one model": (
        {"routes": [{"model": "support", "variants": [{"name": "a"}]}] * 2},
        r"spec\.routes\[1\].*Duplicate value",
    ),
    "an adapter that is called base": (
        adapter("base", uri="s3://adapters/sql"),
        r"spec\.adapters\[0\]\.name.*an adapter cannot have the name base",
    ),
    "an adapter of two origins": (
        adapter(fineTuneJobRef={"name": "sql-v1"}, uri="s3://adapters/sql"),
        r"spec\.adapters\[0\]\.from.*give exactly one of fineTuneJobRef and uri",
    ),
    "an adapter of no origin": (adapter(), r"spec\.adapters\[0\]\.from.*give exactly one of fineTuneJobRef and uri"),
    "a pin without a uri": (
        adapter(fineTuneJobRef={"name": "sql-v1"}, sha256=PIN),
        r"spec\.adapters\[0\]\.from\.sha256.*sha256 pins a uri",
    ),
    "a pin that is none": (adapter(uri="s3://adapters/sql", sha256="aaaa"), r"from\.sha256.*should match"),
    "an adapter from the hub": (adapter(uri="hf://org/name"), r"from\.uri.*should match"),
    "no room to replace a replica": (
        {"strategy": {"maxSurge": 0, "maxUnavailable": 0}},
        r"spec\.strategy.*maxSurge and maxUnavailable cannot both be 0",
    ),
    "no room to replace a replica, by default": (
        {"strategy": {"maxSurge": 0}},
        r"spec\.strategy.*maxSurge and maxUnavailable cannot both be 0",
    ),
    "no engine": ({"engine": {}}, r"spec\.engine.*give exactly one engine: vllm"),
    "an unknown engine": ({"engine": {"vllm": {}, "other": {}}}, r'unknown field "spec\.engine\.other"'),
    "a rank that vLLM does not know": (vllm(maxLoraRank=12), r"spec\.engine\.vllm\.maxLoraRank.*Unsupported value"),
    "fewer replicas than none": ({"replicas": -1}, r"spec\.replicas.*greater than or equal to 0"),
    "a GPU class without GPUs": (
        {"compute": {"gpus": 0, "gpuClass": "a100"}},
        r"spec\.compute.*gpuClass has no meaning with gpus 0",
    ),
    "a header that is none": (
        {"routes": [{"model": "m", "variants": [{"name": "a"}], "sticky": {"header": "a b"}}]},
        r"sticky\.header.*should match",
    ),
    "no router": ({"router": {"replicas": 0}}, r"spec\.router\.replicas.*greater than or equal to 1"),
}


@pytest.mark.parametrize("what", UNDEPLOYABLE)
def test_a_wrong_deployment_is_refused_by_name(server: Target, namespace: str, what: str) -> None:
    spec, expected = UNDEPLOYABLE[what]
    said = answer(server, deployment_body(namespace=namespace, **spec), "--dry-run=server")
    assert re.search(expected, said), said


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a" * 46, "the name may have at most 45 characters"),
        ("v1.2", "the name must begin with a letter and have no dots"),
        ("1st", "the name must begin with a letter and have no dots"),
    ],
)
def test_a_name_whose_service_or_pods_would_not_fit_is_refused(
    server: Target, namespace: str, name: str, expected: str
) -> None:
    assert expected in answer(server, deployment_body(name, namespace), "--dry-run=server")


def test_the_longest_name_of_a_deployment_is_taken(server: Target, namespace: str) -> None:
    assert "created" in answer(server, deployment_body("a" * 45, namespace), "--dry-run=server")


@pytest.mark.parametrize(
    "model",
    [{"uri": "s3://models/other"}, {"uri": "hf://org/name", "revision": "v2"}, {"uri": "hf://org/name"}],
    ids=["another one", "another revision", "no revision"],
)
def test_the_model_cannot_change_while_it_is_served(server: Target, namespace: str, model: dict[str, Any]) -> None:
    served = {"uri": "hf://org/name", "revision": "v1"}
    assert "created" in answer(server, deployment_body(namespace=namespace, model=served))
    said = answer(server, deployment_body(namespace=namespace, model=model))
    assert "model cannot change while it is served: create another ModelDeployment" in said


def test_all_else_of_a_deployment_may_change(server: Target, namespace: str) -> None:
    assert "created" in answer(server, deployment_body(namespace=namespace, model={"uri": "hf://org/name"}))
    secret = {"uri": "hf://org/name", "secretRef": {"name": "hf-token"}}
    changed = {**routes({"name": "a", "adapter": "sql", "weight": 9}, {"name": "b"}), **vllm(maxLoras=2), "replicas": 3}
    assert "configured" in answer(server, deployment_body(namespace=namespace, model=secret, **changed))
    assert "configured" in answer(server, deployment_body(namespace=namespace, model={"uri": "hf://org/name"}))


def test_the_servers_defaults_of_a_deployment_are_the_models(server: Target, namespace: str) -> None:
    body = deployment_body(namespace=namespace)
    assert "created" in answer(server, body)
    by_model = ModelDeployment.parse(body).spec.to_wire()
    spec = server.get("-n", namespace, "modeldeployment", "assistant")["spec"]
    assert spec == {name: value for name, value in by_model.items() if value not in ({}, [])}
    routed = deployment_body("routed", namespace, **routes({"name": "a"}))
    assert "created" in answer(server, routed)
    (route,) = server.get("-n", namespace, "modeldeployment", "routed")["spec"]["routes"]
    assert route == {"model": "support", "variants": [{"name": "a", "weight": 1}]}


def test_kubectl_scales_a_deployment_and_an_autoscaler_can(server: Target, namespace: str) -> None:
    assert "created" in answer(server, deployment_body(namespace=namespace))
    server.kubectl("-n", namespace, "scale", "mdep/assistant", "--replicas=3")
    assert server.get("-n", namespace, "mdep", "assistant")["spec"]["replicas"] == 3
    status = json.dumps({"status": {"replicas": 2, "selector": "a=b"}})
    server.kubectl("-n", namespace, "patch", "mdep/assistant", "--subresource=status", "--type=merge", "-p", status)
    scale = server.get("-n", namespace, "mdep/assistant", "--subresource=scale")
    assert (scale["spec"]["replicas"], scale["status"]) == (3, {"replicas": 2, "selector": "a=b"})


@pytest.mark.parametrize("case", test_engine_pods.CASES)
def test_a_restricted_namespace_takes_what_runs_a_deployment(server: Target, namespace: str, case: str) -> None:
    restricted = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
    server.kubectl("label", "namespace", namespace, *restricted)
    made = test_engine_pods.case(case) + (test_router_pods.case(case) if case in test_router_pods.CASES else [])
    for each in made:
        each["metadata"] = {**each["metadata"], "namespace": namespace}
    listed = {"apiVersion": "v1", "kind": "List", "items": made}
    said = answer(server, listed, "--dry-run=server", "--validate=strict").splitlines()
    assert len(said) == len(made), said
    assert all(line.endswith("created (server dry run)") for line in said), "no warning, no field that is unknown"
