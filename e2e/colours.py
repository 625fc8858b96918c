"""A ModelDeployment small enough for a busy machine: a tiny model on vLLM, adapters that each say one colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2e.client import Plan
from e2e.small import request, upload_rows
from e2e.target import Target
from e2e.workspace import Workspace
from tests.trainer import tiny

NAME = "colours"
MODEL = "colour"
WORDS = 6
"""An answer has so many words: long enough to be in flight when something happens."""
TRAINING = {"epochs": 1000.0, "maxSteps": 150, "batchSize": 8, "microBatchSize": 8, "learningRate": 0.01}


def upload_base(target: Target, folder: Path, prefix: str = "colours", **config: Any) -> str:
    """Make the base model, in a shape that vLLM's attention on CPUs takes, and store it; return its URI."""
    made = tiny.write_model(folder, pretrained=True, num_attention_heads=2, num_key_value_heads=1, **config)
    Workspace(target, "default").upload_folder(made, "models", prefix)
    return f"s3://models/{prefix}"


def job(workspace: Workspace, name: str, base: str, colour: str, rank: int = 8) -> dict[str, Any]:
    """Return a FineTuneJob whose adapter answers everything with one colour."""
    rows = [{**row, "completion": " ".join([colour] * WORDS)} for row in tiny.rows()[0]]
    data = upload_rows(workspace, rows, f"{name}.jsonl")
    method = {"lora": {"rank": rank, "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}}
    return request(workspace, name, base, data, training=TRAINING, method=method)


def adapter(name: str, **origin: Any) -> dict[str, Any]:
    """Return an adapter of a deployment: `job="warm"` or `uri=…, sha256=…`."""
    source = {"fineTuneJobRef": {"name": origin["job"]}} if "job" in origin else origin
    return {"name": name, "from": source}


def route(a: int, b: int) -> dict[str, Any]:
    """Return the route of the one model, with the weights of its two variants."""
    variants = [{"name": "a", "adapter": "warm", "weight": a}, {"name": "b", "adapter": "cold", "weight": b}]
    return {"model": MODEL, "variants": variants, "sticky": {"header": "x-user-id"}}


def deployment(base: str, replicas: int = 2, **spec: Any) -> dict[str, Any]:
    """Return the ModelDeployment; `spec` replaces or adds top-level fields of its spec."""
    usual = {
        "model": {"uri": base},
        # Few at a time, so that some wait.
        "engine": {"vllm": {"args": ["--enforce-eager", "--max-num-seqs=16"]}},
        "replicas": replicas,
        # Engines in use leave something of the node's two cores to one that starts beside them.
        "compute": {
            "resources": {"requests": {"cpu": "100m", "memory": "2Gi"}, "limits": {"cpu": "750m", "memory": "6Gi"}}
        },
        "adapters": [adapter("warm", job="warm"), adapter("cold", job="cold")],
        "routes": [route(90, 10)],
    }
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": NAME},
        "spec": {**usual, **spec},
    }


def plan(workspace: Workspace, concurrency: int, cold: str = "blue", **more: Any) -> Plan:
    """Return what a client asks, and what it must be answered."""
    questions = [row["prompt"] for row in tiny.rows()[0]]
    expected = {name: [f"(({colour}) ?){{{WORDS}}}"] for name, colour in (("warm", "red"), ("cold", cold))}
    url = f"http://{NAME}.{workspace.namespace}.svc/v1"
    return Plan(url, MODEL, questions, expected, concurrency=concurrency, users=500, max_tokens=32, **more)
