"""What the pods of all resources have in common (pure)."""

from collections.abc import Sequence
from typing import Any, Final

from lorikeet_api.compute import EnvVar, PodSettings, Resources
from lorikeet_api.contract import CA_DIR, TERMINATION_PATH
from lorikeet_api.resource import Resource

POD: Final[dict[str, Any]] = {
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
}
"""What every pod has: Pod Security `restricted`, no token for the API."""
CONTAINER: Final[dict[str, Any]] = {
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    },
}
"""What every container has."""
RECORDING: Final[dict[str, Any]] = {
    **CONTAINER,
    "terminationMessagePath": TERMINATION_PATH,
    "terminationMessagePolicy": "FallbackToLogsOnError",
}
"""What every container has that leaves a record."""


def owner_of(resource: Resource, api_version: str, kind: str) -> list[dict[str, Any]]:
    """Return the owner references of a child: it goes with the resource."""
    metadata = resource.metadata
    return [{"apiVersion": api_version, "kind": kind, "name": metadata.name, "uid": metadata.uid, "controller": True}]


def placement(settings: PodSettings) -> dict[str, Any]:
    """Return the pod fields that the user's settings name as Kubernetes does, where they are set."""
    same = settings.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include={
            "node_selector",
            "tolerations",
            "affinity",
            "priority_class_name",
            "runtime_class_name",
            "service_account_name",
            "image_pull_secrets",
        },
    )
    return {name: value for name, value in same.items() if value not in ({}, [])}


def store_environment(
    secret: str | None, hub_secret: str | None, ca: str | None, more: Sequence[EnvVar] | None
) -> list[dict[str, Any]]:
    """Return the environment by which a container reaches its stores, and what the user adds, which wins.

    Args:
        secret: Secret with the S3 credentials.
        hub_secret: Secret that opens gated `hf://` sources.
        ca: ConfigMap of the authorities to trust, which is mounted by `ca_volume`.
        more: the user's own.
    """
    env: list[dict[str, Any]] = []
    if secret is not None:
        env += [
            from_secret("AWS_ACCESS_KEY_ID", secret),
            from_secret("AWS_SECRET_ACCESS_KEY", secret),
            from_secret("AWS_SESSION_TOKEN", secret, optional=True),
        ]
    if hub_secret is not None:
        env.append(from_secret("HF_TOKEN", hub_secret))
    if ca is not None:
        bundle = f"{CA_DIR}/ca.crt"
        env += [{"name": name, "value": bundle} for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    return env + [variable.to_wire() for variable in more or []]


def from_secret(variable: str, secret: str, *, optional: bool = False) -> dict[str, Any]:
    """Return a variable whose value is the key of its name in a Secret; an optional one may be absent there."""
    selector: dict[str, Any] = {"name": secret, "key": variable}
    if optional:
        selector["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": selector}}


def resources(
    asked: Resources | None, scratch: str | int | None = None, gpus: int = 0, gpu_resource: str = ""
) -> dict[str, Any]:
    """Return a container's requests and limits; GPUs are in both."""
    requests = dict((asked.requests if asked else None) or {})
    limits = dict((asked.limits if asked else None) or {})
    if scratch is not None:
        requests.setdefault("ephemeral-storage", scratch)
    if gpus:
        limits[gpu_resource] = requests[gpu_resource] = gpus
    return {kind: values for kind, values in (("requests", requests), ("limits", limits)) if values}


def annotated_file(annotation: str, path: str) -> dict[str, Any]:
    """Return an item of a downward API volume: a file with what an annotation of the pod says."""
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}


def ca_volume(ca: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the volume with the authorities to trust, and its mount."""
    source = {"configMap": {"name": ca, "items": [{"key": "ca.crt", "path": "ca.crt"}]}}
    return source, {"name": "ca", "mountPath": CA_DIR, "readOnly": True}
