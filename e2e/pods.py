"""Pods that scenarios run beside Lorikeet's own: an image, a command, Pod Security `restricted`."""

from __future__ import annotations

import json
from typing import Any

from e2e.workspace import Workspace


def restricted_pod(
    name: str, image: str, command: list[str], folder: str, config_map: str, **container: Any
) -> dict[str, Any]:
    """Return a pod that has the files of a ConfigMap in a folder; `container` adds fields to its container."""
    security = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image,
                    "command": command,
                    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
                    "securityContext": security,
                    "volumeMounts": [{"name": "files", "mountPath": folder}, {"name": "tmp", "mountPath": "/tmp"}],
                    **container,
                }
            ],
            "volumes": [{"name": "files", "configMap": {"name": config_map}}, {"name": "tmp", "emptyDir": {}}],
        },
    }


def run_python(workspace: Workspace, name: str, script: str) -> Any:
    """Run a script in a pod of its own, and return what it prints as JSON. Raises TargetError."""
    files = {"main.py": script}
    workspace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": files})
    image = workspace.target.agent_image
    workspace.apply(restricted_pod(name, image, ["python", "/etc/script/main.py"], "/etc/script", name))
    ended = "--for=jsonpath={.status.phase}=Succeeded"
    workspace.kubectl("wait", f"pod/{name}", ended, "--timeout=60s")
    return json.loads(workspace.kubectl("logs", name))
