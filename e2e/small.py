"""Jobs whose trainer is at work a few seconds after its pod has begun: a model of 100,000 parameters."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2e.target import Target, TargetError
from e2e.workspace import Workspace
from tests.trainer import tiny

SHORT = {"epochs": 1000.0, "maxSteps": 200, "batchSize": 4, "microBatchSize": 4}
MINUTES = {**SHORT, "maxSteps": 3000}
"""Much longer than any test looks at it."""

BESIDE_OTHERS = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "6Gi"}}
"""What they ask for: what else runs leaves less than a core of the node's two. On a second one threads would only wait
for each other, at full speed."""


def upload_model(target: Target, folder: Path) -> str:
    """Make the model and store it; return its URI."""
    prefix = f"small-{secrets.token_hex(3)}"
    Workspace(target, "default").upload_folder(tiny.write_model(folder), "models", prefix)
    return f"s3://models/{prefix}"


def upload_rows(workspace: Workspace, rows: list[tiny.Row], name: str = "train.jsonl") -> str:
    """Store rows for a namespace; return their URI."""
    workspace.bucket("datasets")
    workspace.s3.put_object(Bucket="datasets", Key=f"{workspace.namespace}/{name}", Body=tiny.jsonl(rows))
    return f"s3://datasets/{workspace.namespace}/{name}"


def request(workspace: Workspace, name: str, model: str, data: str | None = None, **spec: Any) -> dict[str, Any]:
    """Return a FineTuneJob; `spec` replaces or adds top-level fields of its spec."""
    usual: dict[str, Any] = {
        "model": {"uri": model},
        "dataset": {"train": [{"uri": data or upload_rows(workspace, tiny.rows()[0])}]},
        "method": {"lora": {"rank": 4}},
        "training": SHORT,
        "compute": {"resources": BESIDE_OTHERS},
        "maxRetries": 0,
    }
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {**usual, **spec},
    }


def steer(workspace: Workspace, name: str, **spec: Any) -> None:
    """Change fields of a FineTuneJob's spec, as a user does."""
    workspace.kubectl("patch", "finetunejob", name, "--type", "merge", "-p", json.dumps({"spec": spec}))


def until_it_trains(workspace: Workspace, name: str, attempts: int = 1) -> None:
    """Wait until the attempt number `attempts` has made its first steps. Raises TargetError."""
    workspace.wait(name, lambda status: status.get("attempts", 0) >= attempts, f"attempt {attempts}", 120)

    def makes_steps() -> bool:
        return any("event=step" in workspace.log(pod) for pod in trainers(workspace))

    until(makes_steps, f"step of attempt {attempts}", 120, lambda: workspace.story())


def trainers(workspace: Workspace, phase: str = "Running") -> list[str]:
    """Return the names of the trainers' pods in a phase, but for those that are being deleted."""
    there = workspace.pods("app.kubernetes.io/component=trainer")
    return [str(pod["metadata"]["name"]) for pod in there if pod["status"]["phase"] == phase]


def until(
    holds: Callable[[], bool], what: str, seconds: float, story: Callable[[], str] = str, every: float = 0.5
) -> None:
    """Wait until something holds, looked at `every` so many seconds. Raises TargetError, with what `story` tells."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TargetError(f"no {what} within {seconds:.0f} s\n{story()}")
        time.sleep(every)
