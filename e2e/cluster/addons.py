"""What runs in every development cluster: DNS and an S3 server, as pure functions to Kubernetes objects."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

Object = dict[str, Any]

S3_NAMESPACE = "lorikeet-s3"
S3_PORT = 7070
S3_NODE_PORT = 30070
S3_USER = 65532
"""Whoever owns the data folder on the node: hostPath volumes are not handed over by fsGroup."""

COREFILE = """\
.:1053 {
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
    cache 5
    reload
}
"""

_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD = {
    "runAsNonRoot": True,
    "runAsUser": S3_USER,
    "runAsGroup": S3_USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def _deployment(name: str, namespace: str, pod: Object) -> Object:
    labels = {"app.kubernetes.io/name": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"securityContext": _POD, **pod}},
        },
    }


def dns(image: str, address: IPv4Address) -> list[Object]:
    """CoreDNS as Kubernetes documents it, listening above 1024 so that it needs no capability."""
    name, namespace = "coredns", "kube-system"
    meta = {"name": name, "namespace": namespace}
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    rbac = "rbac.authorization.k8s.io"
    container = {
        "name": "coredns",
        "image": image,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"port": 8181, "path": "/ready"}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": _RESTRICTED,
    }
    pod = {
        "serviceAccountName": name,
        "dnsPolicy": "Default",
        "priorityClassName": "system-cluster-critical",
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    ports = [
        {"name": "dns", "port": 53, "targetPort": 1053, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "targetPort": 1053, "protocol": "TCP"},
    ]
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": COREFILE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
        _deployment(name, namespace, pod),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": namespace},
            "spec": {
                "clusterIP": str(address),
                "selector": {"app.kubernetes.io/name": name},
                "ports": ports,
            },
        },
    ]


def volume(name: str, namespace: str, folder: str, size: str = "10Gi") -> list[Object]:
    """A folder of the node as a PersistentVolume, bound to a claim of the same name."""
    common = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}"},
            "spec": {
                **common,
                "capacity": {"storage": size},
                "hostPath": {"path": folder, "type": "Directory"},
                "claimRef": {"namespace": namespace, "name": name},
                "persistentVolumeReclaimPolicy": "Retain",
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                **common,
                "resources": {"requests": {"storage": size}},
                "volumeName": f"{namespace}-{name}",
            },
        },
    ]


def s3(image: str, folder: str, access_key: str, secret_key: str) -> list[Object]:
    """A real S3 server whose buckets are folders, for pods by its name and for the host by a node port."""
    name = "s3"
    secret = "s3-credentials"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}

    def from_secret(variable: str, key: str) -> Object:
        return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}

    container = {
        "name": "s3",
        "image": image,
        "args": ["--port", f":{S3_PORT}", "--region", "us-east-1", "posix", "/data"],
        "env": [
            from_secret("ROOT_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
            from_secret("ROOT_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"),
        ],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}],
        "readinessProbe": {"tcpSocket": {"port": S3_PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "securityContext": _RESTRICTED,
    }
    pod = {
        "automountServiceAccountToken": False,
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": name}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": S3_NAMESPACE, "labels": labels}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": secret, "namespace": S3_NAMESPACE},
            "stringData": {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key},
        },
        *volume(name, S3_NAMESPACE, folder),
        _deployment(name, S3_NAMESPACE, pod),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": S3_NAMESPACE},
            "spec": {
                "type": "NodePort",
                "selector": {"app.kubernetes.io/name": name},
                "ports": [{"port": S3_PORT, "targetPort": S3_PORT, "nodePort": S3_NODE_PORT}],
            },
        },
    ]
