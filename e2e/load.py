"""Runs `e2e.client` in a pod of a workspace, as an application does that knows one URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e2e import client
from e2e.client import Plan
from e2e.pods import restricted_pod
from e2e.small import until
from e2e.workspace import Workspace

_FOLDER = "/etc/client"


class Load:
    """A client that is at work."""

    def __init__(self, workspace: Workspace, name: str) -> None:
        self._workspace = workspace
        self._name = name

    def report(self) -> dict[str, Any]:
        """Return what has come of its requests so far (`e2e.client.Report`)."""
        path = f"/api/v1/namespaces/{self._workspace.namespace}/pods/{self._name}:{client.PORT}/proxy/report"
        report: dict[str, Any] = json.loads(self._workspace.target.read(path))
        return report

    def until_answered(self, more: int, seconds: float = 120) -> dict[str, Any]:
        """Wait until so many more requests were answered than now, and return the report. Raises TargetError."""
        before = self.report()["answered"]
        until(lambda: self.report()["answered"] >= before + more, f"{more} answers more", seconds, self.story, every=2)
        return self.report()

    def story(self) -> str:
        """Return what one wants to read when something failed."""
        report = self.report()
        report["timeline"] = report["timeline"][-20:]
        return f"client {self._name}: {json.dumps(report)}\n{self._workspace.story()}"


@contextmanager
def load(workspace: Workspace, plan: Plan, name: str = "client") -> Iterator[Load]:
    """Ask as `plan` says while the block runs."""
    script = Path(client.__file__).read_text(encoding="utf-8")
    workspace.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"client.py": script}}
    )
    pod = restricted_pod(
        name,
        workspace.target.agent_image,
        ["python", f"{_FOLDER}/client.py"],
        _FOLDER,
        name,
        env=[{"name": "CLIENT", "value": json.dumps(asdict(plan))}],
        readinessProbe={"httpGet": {"path": "/report", "port": client.PORT}, "periodSeconds": 1},
    )
    workspace.apply(pod)
    try:
        workspace.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
        found = Load(workspace, name)
        found.until_answered(1)
        yield found
    finally:
        workspace.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--ignore-not-found", check=False)
