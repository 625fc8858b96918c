"""ModelDeployments as users handle them: applied, watched, edited, asked."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from e2e.target import TargetError
from e2e.workspace import Workspace, condition

RESOURCE = "modeldeployment"


def deployment(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return a ModelDeployment as it is now."""
    return workspace.get(RESOURCE, name)


def wait_for(workspace: Workspace, name: str, kind: str, seconds: float, *, reason: str = "") -> dict[str, Any]:
    """Wait until a condition of the newest spec holds, or until it has a certain reason, and return the whole."""

    def holds(status: dict[str, Any]) -> bool:
        found = condition(status, kind)
        current = found.get("observedGeneration") == deployment(workspace, name)["metadata"]["generation"]
        return bool(current and (found["reason"] == reason if reason else found["status"] == "True"))

    return workspace.wait(name, holds, f"{kind} {reason}".strip(), seconds, resource=RESOURCE)


def steer(workspace: Workspace, name: str, **spec: Any) -> None:
    """Change fields of a ModelDeployment's spec, as a user does; lists are replaced whole."""
    workspace.kubectl("patch", RESOURCE, name, "--type", "merge", "-p", json.dumps({"spec": spec}))


def edit(workspace: Workspace, name: str, script: str) -> None:
    """Run `kubectl edit`, with sed in the place of the editor. Raises TargetError."""
    target = workspace.target
    command = ["kubectl", "--context", target.context, "-n", workspace.namespace, "edit", RESOURCE, name]
    environment = {**target.environment, "KUBE_EDITOR": f"sed -i -e '{script}'"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or "edited" not in done.stdout:
        raise TargetError(f"kubectl edit: {done.stdout}{done.stderr}")


def pods(workspace: Workspace, name: str, component: str) -> list[dict[str, Any]]:
    """Return the pods of a component (`engine`, `router`) that are not being deleted."""
    return workspace.pods(f"lorikeet.dev/modeldeployment={name}", f"app.kubernetes.io/component={component}")


def served(status: dict[str, Any], adapter: str) -> str:
    """Return the name under which an adapter is served, empty where it is not known yet."""
    return next((str(each["servedName"]) for each in status.get("adapters", []) if each["name"] == adapter), "")


def weights(status: dict[str, Any], model: str) -> dict[str, int]:
    """Return the weights by which a model's variants are led now."""
    routes = {each["model"]: each["variants"] for each in status.get("routes", [])}
    return {each["name"]: each["weight"] for each in routes.get(model, [])}


def agent_state(workspace: Workspace, pod: dict[str, Any]) -> dict[str, Any]:
    """Return what the agent in a pod of an engine or a router says of itself."""
    name = pod["metadata"]["name"]
    path = f"/api/v1/namespaces/{workspace.namespace}/pods/{name}:9000/proxy/state"
    state: dict[str, Any] = json.loads(workspace.target.read(path))
    return state


@contextmanager
def reached(workspace: Workspace, name: str) -> Iterator[httpx.Client]:
    """Reach a deployment's router from this machine, while the block runs."""
    with (
        forwarded(workspace, f"svc/{name}", 80) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        yield client


@contextmanager
def forwarded(workspace: Workspace, to: str, port: int) -> Iterator[int]:
    """Reach a port of a pod or Service from this machine's loopback, while the block runs; yield the port there."""
    target = workspace.target
    command = ["kubectl", "--context", target.context, "-n", workspace.namespace, "port-forward", to, f":{port}"]
    with subprocess.Popen(command, env=target.environment, stdout=subprocess.PIPE, text=True) as forward:
        try:
            line = forward.stdout.readline() if forward.stdout is not None else ""
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found is None:
                raise TargetError(f"kubectl port-forward said: {line}")
            yield int(found[1])
        finally:
            forward.terminate()
