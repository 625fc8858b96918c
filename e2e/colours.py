"""A ModelDeployment small enough for a busy machine: a tiny model on vLLM, adapters that each say one colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

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
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


def write_base(folder: Path, **config: Any) -> Path:
    """Make the base model, in a shape that vLLM's attention on CPUs takes; return its folder."""
    return tiny.write_model(folder, pretrained=True, num_attention_heads=2, num_key_value_heads=1, **config)


def upload_base(target: Target, folder: Path, prefix: str = "colours", **config: Any) -> str:
    """Make the base model and store it; return its URI."""
    Workspace(target, "default").upload_folder(write_base(folder, **config), "models", prefix)
    return f"s3://models/{prefix}"


def _answer(colour: str) -> str:
    return " ".join([colour] * WORDS)


def write_adapter(folder: Path, base: Path, colour: str, rank: int = 8) -> Path:
    """Train an adapter as `job` has it trained, but here and without a job; return its folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": _answer(colour)}]
        for row in tiny.rows()[0]
    ]
    batch = tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True, padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=TRAINING["learningRate"])
    for _ in range(int(TRAINING["maxSteps"])):
        optimizer.zero_grad()
        adapted(**batch, labels=labels).loss.backward()
        optimizer.step()
    adapted.save_pretrained(str(folder))
    return folder


def job(workspace: Workspace, name: str, base: str, colour: str, rank: int = 8, **spec: Any) -> dict[str, Any]:
    """Return a FineTuneJob whose adapter answers everything with one colour; `spec` replaces or adds fields of it."""
    rows = [{**row, "completion": _answer(colour)} for row in tiny.rows()[0]]
    data = upload_rows(workspace, rows, f"{name}.jsonl")
    method = {"lora": {"rank": rank, "targetModules": TARGETS}}
    return request(workspace, name, base, data, **{"training": TRAINING, "method": method, **spec})


def further(workspace: Workspace, name: str, colour: str, earlier: str) -> dict[str, Any]:
    """Return a FineTuneJob that teaches an earlier one's adapter another colour."""
    made = job(workspace, name, earlier, colour)
    made["spec"]["model"] = {"from": {"fineTuneJobRef": {"name": earlier}}}
    return made


def on_components(workspace: Workspace, name: str, base: str, colour: str) -> dict[str, Any]:
    """Return a FineTuneJob whose adapter is trained in the place of the base's principal components (PiSSA)."""
    method = {"lora": {"rank": 8, "targetModules": TARGETS, "init": "pissa", "dropout": 0}}
    return job(workspace, name, base, colour, method=method, training={**TRAINING, "learningRate": 0.002})


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
