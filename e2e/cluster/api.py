"""A small client of the cluster's API server, for bringing the cluster up and for its own tests."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Self

import httpx

from e2e.cluster.errors import ClusterError

Object = dict[str, Any]
FIELD_MANAGER = "lorikeet-e2e"

# Kind: path of its group and version, plural, whether it lives in a namespace.
_KINDS: dict[str, tuple[str, str, bool]] = {
    "Namespace": ("/api/v1", "namespaces", False),
    "Node": ("/api/v1", "nodes", False),
    "PersistentVolume": ("/api/v1", "persistentvolumes", False),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims", True),
    "ConfigMap": ("/api/v1", "configmaps", True),
    "Secret": ("/api/v1", "secrets", True),
    "Service": ("/api/v1", "services", True),
    "ServiceAccount": ("/api/v1", "serviceaccounts", True),
    "Pod": ("/api/v1", "pods", True),
    "Deployment": ("/apis/apps/v1", "deployments", True),
    "ClusterRole": ("/apis/rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
}


def path(kind: str, name: str = "", namespace: str = "") -> str:
    """The URL path of an object, or of all of a kind."""
    prefix, plural, namespaced = _KINDS[kind]
    inside = f"/namespaces/{namespace}" if namespaced and namespace else ""
    return f"{prefix}{inside}/{plural}" + (f"/{name}" if name else "")


class Api:
    """Requests to one API server as its administrator."""

    def __init__(self, url: str, pki: Path) -> None:
        context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        # The environment's proxies are not meant for a cluster on this machine.
        self._client = httpx.Client(base_url=url, verify=context, trust_env=False, timeout=10)

    def __enter__(self) -> Self:
        """For ``with``."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._client.close()

    def _request(self, method: str, url: str, missing_ok: bool = False, **options: Any) -> Any:
        response = self._client.request(method, url, **options)
        if missing_ok and response.status_code == 404:
            return None
        if response.is_error:
            raise ClusterError(
                f"The API server refused {method} {url} ({response.status_code}).",
                "Look at log/kube-apiserver.log in the cluster's state folder.",
                response.text[:2000],
            )
        return response.json()

    def ready(self) -> bool:
        """True if the API server says that it is ready."""
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """An object, None if there is none."""
        found: Object | None = self._request("GET", path(kind, name, namespace), missing_ok=True)
        return found

    def apply(self, body: Object) -> Object:
        """Server-side apply."""
        meta = body["metadata"]
        applied: Object = self._request(
            "PATCH",
            path(body["kind"], meta["name"], meta.get("namespace", "")),
            params={"fieldManager": FIELD_MANAGER, "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            json=body,
        )
        return applied

    def patch_status(self, kind: str, name: str, operations: list[Object]) -> None:
        """A JSON patch of an object's status."""
        self._request(
            "PATCH",
            path(kind, name) + "/status",
            headers={"Content-Type": "application/json-patch+json"},
            json=operations,
        )

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Delete an object and what it owns; nothing if there is none."""
        self._request(
            "DELETE", path(kind, name, namespace), missing_ok=True, params={"propagationPolicy": "Background"}
        )

    def text(self, url: str) -> str:
        """The text at a path: a pod's log, for instance."""
        response = self._client.get(url)
        return response.text if response.is_success else ""


def condition(body: Object | None, name: str) -> bool:
    """True if the object has the condition with status True."""
    conditions = (body or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == name and c["status"] == "True" for c in conditions)
