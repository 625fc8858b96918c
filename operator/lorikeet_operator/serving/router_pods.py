"""Builds what runs the routers of a ModelDeployment: their Deployment, Service, budget and configuration (pure)."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from lorikeet_api import names
from lorikeet_api.contract import canonical_json
from lorikeet_api.modeldeployment import ModelDeployment, RouteStatus
from lorikeet_api.serving import AGENT_PORT, ROUTER_DIR, ROUTER_WANTED, RouterWanted, fingerprint
from lorikeet_engines import ENGINES
from lorikeet_operator import pods
from lorikeet_operator.quantities import whole
from lorikeet_operator.serving import router
from lorikeet_operator.serving.engine_pods import (
    AGENT_PROBES,
    HUNG_SECONDS,
    SLACK_SECONDS,
    USER,
    budget,
    drain_hook,
    drain_token,
    metadata,
    selector,
    spread,
)
from lorikeet_operator.serving.plan import routes
from lorikeet_operator.serving.setup import DRAIN_SECONDS, Setup

HTTP_PORT: Final = 8080
STATUS_PORT: Final = 8081
ADMIN_PORT: Final = 9901
SERVICE_PORT: Final = 80
WORKERS: Final = 2
_RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}
_AGENT_RESOURCES: Final = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}


def wanted_bytes(deployment: ModelDeployment, live: Sequence[RouteStatus]) -> bytes:
    """Return the file that tells routers what to lead where."""
    sticky = {route.model: route.sticky.header for route in routes(deployment) if route.sticky is not None}
    models = [
        router.Route(
            model=route.model,
            variants=[router.Variant(each.name, each.served_name, each.weight) for each in route.variants],
            sticky=sticky.get(route.model),
        )
        for route in live
    ]
    engine = ENGINES[deployment.spec.engine.name]
    host = f"{names.engine(deployment.metadata.name)}.{deployment.metadata.namespace}.svc"
    engines = router.Engines(host, engine.port, AGENT_PORT)
    balancing = deployment.spec.router.load_balancing
    wanted = RouterWanted(
        clusters=router.clusters(models, engines, balancing),
        routes=router.routes(models, _limits(deployment), balancing),
    )
    return canonical_json(wanted.to_wire())


def router_objects(deployment: ModelDeployment, setup: Setup, wanted: bytes) -> list[dict[str, Any]]:
    """Return ConfigMap, Service, Deployment and PodDisruptionBudget of the routers."""
    name = names.router(deployment.metadata.name)
    static = {
        "bootstrap.json": canonical_json(
            router.bootstrap(
                f"{deployment.metadata.namespace}/{deployment.metadata.name}",
                ADMIN_PORT,
                ROUTER_DIR,
                max_heap_bytes=_memory_limit(deployment),
            )
        ).decode(),
        "listeners.json": canonical_json(
            router.listeners(HTTP_PORT, STATUS_PORT, _limits(deployment), ROUTER_DIR)
        ).decode(),
    }
    file = ROUTER_WANTED.rpartition("/")[2]
    labels = selector(deployment, names.ROUTER)
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(deployment, name, names.ROUTER),
            "data": {**static, file: wanted.decode()},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(deployment, deployment.metadata.name, names.ROUTER),
            "spec": {
                "type": deployment.spec.router.service_type,
                "selector": labels,
                "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": HTTP_PORT, "protocol": "TCP"}],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata(deployment, name, names.ROUTER),
            "spec": {
                "replicas": deployment.spec.router.replicas,
                "revisionHistoryLimit": 2,
                "minReadySeconds": 5,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                "selector": {"matchLabels": labels},
                "template": _template(deployment, setup, static),
            },
        },
        budget(deployment, name, names.ROUTER),
    ]


def url(deployment: ModelDeployment) -> str:
    """Return where clients inside the cluster reach it."""
    return f"http://{deployment.metadata.name}.{deployment.metadata.namespace}.svc/v1"


def wanted_fingerprint(wanted: bytes) -> str:
    """Return the fingerprint that a router's agent says once it has read this."""
    return fingerprint(wanted)


def _resources(deployment: ModelDeployment) -> dict[str, Any]:
    asked = deployment.spec.router.resources
    return _RESOURCES if asked is None else pods.resources(asked)


def _memory_limit(deployment: ModelDeployment) -> int | None:
    limit = _resources(deployment).get("limits", {}).get("memory")
    return None if limit is None else whole(limit)


def _limits(deployment: ModelDeployment) -> router.Limits:
    settings = deployment.spec.router
    return router.Limits(settings.max_request_bytes, settings.idle_timeout_seconds)


def _template(deployment: ModelDeployment, setup: Setup, static: dict[str, str]) -> dict[str, Any]:
    drain = setup.compute.termination_grace_period_seconds or DRAIN_SECONDS
    config = {"name": "config", "mountPath": ROUTER_WANTED.rpartition("/")[0], "readOnly": True}
    tmp = {"name": "tmp", "mountPath": "/tmp"}  # noqa: S108 - the pod's own
    environment = {
        "LORIKEET_DRAIN": drain_token(deployment),
        "LORIKEET_DRAIN_SECONDS": str(drain),
        "LORIKEET_ADMIN_PORT": str(ADMIN_PORT),
    }
    agent = {
        **pods.CONTAINER,
        "name": names.AGENT_CONTAINER,
        "image": setup.agent_image,
        "args": ["route"],
        "restartPolicy": "Always",
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "ports": [{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        **AGENT_PROBES,
        "resources": _AGENT_RESOURCES,
        "volumeMounts": [config, {"name": "xds", "mountPath": ROUTER_DIR}, tmp],
    }
    envoy = {
        **pods.CONTAINER,
        "name": names.ROUTER_CONTAINER,
        "image": setup.router_image,
        "command": ["envoy"],
        "args": ["-c", f"{ROUTER_DIR}/bootstrap.json", "--concurrency", str(WORKERS), "--drain-time-s", str(drain)],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "status", "containerPort": STATUS_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": STATUS_PORT}, "periodSeconds": 2, "timeoutSeconds": 2},
        "livenessProbe": {
            "httpGet": {"path": "/ready", "port": STATUS_PORT},
            "initialDelaySeconds": 60,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
            "terminationGracePeriodSeconds": HUNG_SECONDS,
        },
        "lifecycle": drain_hook(deployment),
        "resources": _resources(deployment),
        "volumeMounts": [{"name": "xds", "mountPath": ROUTER_DIR, "readOnly": True}, tmp],
    }
    pod = {
        **pods.POD,
        "securityContext": {
            **pods.POD["securityContext"],
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
        },
        "terminationGracePeriodSeconds": drain + SLACK_SECONDS,
        "topologySpreadConstraints": spread(deployment, names.ROUTER),
        "initContainers": [agent],
        "containers": [envoy],
        "volumes": [
            {"name": "config", "configMap": {"name": names.router(deployment.metadata.name)}},
            {"name": "xds", "emptyDir": {"sizeLimit": "64Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }
    if setup.compute.image_pull_secrets:
        pod["imagePullSecrets"] = [secret.to_wire() for secret in setup.compute.image_pull_secrets]
    digest = hashlib.sha256(canonical_json(static)).hexdigest()[:16]
    return {
        "metadata": {
            "labels": names.serving_labels(deployment.metadata.name, names.ROUTER),
            # Listeners are read once: others need other pods.
            "annotations": {
                "lorikeet.dev/listeners": digest,
                "kubectl.kubernetes.io/default-container": names.ROUTER_CONTAINER,
            },
        },
        "spec": pod,
    }
