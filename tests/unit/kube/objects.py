"""Objects as an API server hands them out."""

from typing import Any

from lorikeet_operator.kube.kinds import Kind, Object

CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
"""A kind without a status, for example."""


def config_map(
    name: str = "a", *, version: int, uid: str = "", namespace: str = "ns", owner: str | None = None, **more: Any
) -> Object:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "uid": uid or f"uid-{name}",
        "resourceVersion": str(version),
    }
    if owner is not None:
        metadata["labels"] = {"owner": owner}
        metadata["ownerReferences"] = [{"controller": True, "uid": owner, "kind": "Owner", "name": owner}]
    return {"apiVersion": CONFIG_MAP.api_version, "kind": CONFIG_MAP.kind, "metadata": metadata, **more}
