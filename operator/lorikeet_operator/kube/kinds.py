"""Kinds of Kubernetes objects and the few fields that every object has."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

Object: TypeAlias = dict[str, Any]
"""An object as the API server sent it. One that comes out of the cache is shared: read it, never change it."""


class Key(NamedTuple):
    """Name of an object within its kind; the namespace of a cluster-scoped object is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True)
class Kind:
    """A kind of objects, and where the API server keeps it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of objects of this kind."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """`plural.group`, as kubectl and RBAC write it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of a collection or, with a name, of one object.

        Without a namespace the collection is that of the whole cluster.
        """
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)

    def __str__(self) -> str:
        return self.resource


POD: Final = Kind("", "v1", "pods", "Pod")
EVENT: Final = Kind("", "v1", "events", "Event")
LEASE: Final = Kind("coordination.k8s.io", "v1", "leases", "Lease")
JOB: Final = Kind("batch", "v1", "jobs", "Job")
CONFIG_MAP: Final = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE: Final = Kind("", "v1", "services", "Service")
DEPLOYMENT: Final = Kind("apps", "v1", "deployments", "Deployment")
DISRUPTION_BUDGET: Final = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NAMESPACE: Final = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
NETWORK_POLICY: Final = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")


def key_of(obj: Object) -> Key:
    """Return the key of an object."""
    metadata = obj["metadata"]
    return Key(metadata.get("namespace") or "", metadata["name"])


def uid_of(obj: Object) -> str:
    """Return the uid of an object, empty before the API server has given one."""
    return str(obj["metadata"].get("uid") or "")


def version_of(obj: Object) -> int:
    """Return the resource version as a number: the API promises that they compare as integers."""
    return int(obj["metadata"].get("resourceVersion") or 0)


def label_of(obj: Object, label: str) -> str | None:
    """Return the value of a label."""
    value = (obj["metadata"].get("labels") or {}).get(label)
    return None if value is None else str(value)


def is_deleted(obj: Object) -> bool:
    """Return whether the deletion of an object has been asked for; finalizers, or a grace period, may hold it."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def controller_uid(obj: Object) -> str | None:
    """Return the uid of the object that controls this one, if any."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return str(reference["uid"])
    return None
