"""From `kubectl apply -f finetune.yaml` to a tuned adapter in S3, and on to two that are served (`make demo`)."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from e2e.cluster.paths import CHECKOUT, cache_dir
from e2e.demo_serving import serve
from e2e.deploy import install
from e2e.steps import EXAMPLES, apply, finish, step
from e2e.target import Target, TargetError, target
from e2e.workspace import Workspace, clear
from lorikeet_api.contract import Metrics
from lorikeet_cli.figures import time_of

MODEL = ("models", "smollm2-135m-instruct")
DATA = ("datasets", "text-to-sql")
YAML = EXAMPLES / "finetune.yaml"
NAME = "text-to-sql"
POINTS = 50
"""Percentage points of exact match by which the tuned model must beat the base."""


def material(folder: Path) -> tuple[Path, Path]:
    """Make the demo's model (kept in the cache) and data; return their folders."""
    model = cache_dir() / "models" / MODEL[1]
    data = folder / "data"
    for script, made in (("models/smollm2.py", model), ("text-to-sql/make_data.py", data)):
        subprocess.run([sys.executable, str(EXAMPLES / script), str(made)], check=True, stdout=subprocess.DEVNULL)
    return model, data


def download_adapter(workspace: Workspace, uri: str, folder: Path) -> dict[str, Any]:
    """Download a run's adapter, as a user would find it, and return its manifest."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    manifest: dict[str, Any] = json.loads(
        workspace.s3.get_object(Bucket=bucket, Key=f"{prefix}/manifest.json")["Body"].read()
    )
    folder.mkdir(parents=True)
    for file in manifest["files"]:
        if file["path"].startswith("adapter/"):
            workspace.s3.download_file(bucket, f"{prefix}/{file['path']}", str(folder / Path(file["path"]).name))
    return manifest


def compare(model: Path, adapter: Path, heldout: Path) -> dict[str, Any]:
    """Return what `e2e.answers` says of base and tuned model."""
    command = [sys.executable, "-m", "e2e.answers", str(model), str(adapter), str(heldout)]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, cwd=CHECKOUT, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"the models could not be asked:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def report(workspace: Workspace, job: dict[str, Any], result: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Print what came out; return whether the tuned model is as much better as it must be."""
    print(workspace.kubectl("get", "finetunejobs", "-o", "wide"))
    metrics, artifacts = job["status"]["metrics"], job["status"]["artifacts"]
    print(
        f"Adapter   {artifacts['uri']}/adapter  ({artifacts['sizeBytes'] / 1e6:.1f} MB, {len(manifest['files'])} files)"
    )
    print(f"Revision  {artifacts['revision']}  (sha256 of its manifest: {artifacts['sha256']})")
    print(f"4-bit     {metrics['quantizedLayers']} layers, {metrics['quantizedPercent']:.0f} % of the base model")
    print(f"Loss      held-out {metrics['baseEvalLoss']:.3f} before, {metrics['evalLoss']:.3f} after")
    print(f"Time      {time_of(Metrics.model_validate(metrics))}")
    print()
    for example in result["examples"]:
        print(f"Question  {example['question']}")
        print(f"  base    {' '.join(example['base'].split())[:90]}")
        print(f"  tuned   {example['tuned']}")
    base, tuned = (100 * result[which] / result["questions"] for which in ("base", "tuned"))
    print(f"\nExact match on {result['questions']} questions about tables that were never trained on:")
    print(f"  base {base:.0f} %, tuned {tuned:.0f} %")
    return bool(tuned - base >= POINTS)


def demo(found: Target) -> int:
    """Run a job in a fresh namespace, serve what comes out, and print it."""
    workspace = Workspace(found, f"demo-{secrets.token_hex(3)}")
    with step("installing Lorikeet by its Helm chart, and the cluster's TuningProfile"):
        install(found)
        clear(found)
    with tempfile.TemporaryDirectory(prefix="lorikeet-demo-") as temporary:
        with step("putting the base model (SmolLM2-135M-Instruct) and the data into S3"):
            model, data = material(Path(temporary))
            workspace.upload_folder(model, *MODEL)
            workspace.upload_folder(data, *DATA)
            workspace.bucket("adapters")
        with step(f"namespace {workspace.namespace}, with S3 credentials"):
            workspace.create()
        with step(f"kubectl apply -n {workspace.namespace} -f examples/finetune.yaml"):
            apply(workspace, "finetune.yaml")
            job = finish(workspace, NAME)
        with step("reading the adapter back from S3 and asking both models the held-out questions"):
            manifest = download_adapter(workspace, job["status"]["artifacts"]["uri"], Path(temporary) / "adapter")
            result = compare(model, Path(temporary) / "adapter", data / "heldout.jsonl")
        if not report(workspace, job, result, manifest):
            sys.stderr.write(f"the tuned model must be {POINTS} points better than the base\n")
            return 1
        if not serve(workspace, data / "heldout.jsonl"):
            sys.stderr.write("a request has failed, or was answered by another adapter than its header names\n")
            return 1
    return 0


def main() -> int:
    """Run the demo on the cluster that the environment names."""
    began = time.monotonic()
    try:
        code = demo(target())
    except TargetError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(f"\nThe demo took {time.monotonic() - began:.0f} s.")
    return code


if __name__ == "__main__":
    sys.exit(main())
