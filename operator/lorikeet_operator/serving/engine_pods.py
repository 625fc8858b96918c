"""Builds what runs the engines of a ModelDeployment: Deployment, Service, budget, policy, wanted adapters (pure)."""

import hashlib
from typing import Any, Final

from lorikeet_api import names
from lorikeet_api.contract import canonical_json
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.request import Refused
from lorikeet_api.serving import (
    ADAPTERS_DIR,
    AGENT_PORT,
    CACHE_DIR,
    DRAIN_HEADER,
    ENGINE_CONTRACT,
    GUARD_DIR,
    GUARD_MODULE,
    MODEL_DIR,
    WANTED,
    EngineContract,
    WantedAdapters,
    model_folder,
)
from lorikeet_engines import ENGINES, Launch
from lorikeet_operator import pods
from lorikeet_operator.serving.setup import DRAIN_SECONDS, Setup
from lorikeet_operator.serving.stores import claim, stores

USER: Final = 65532
"""What everything runs as: images of engines name root, or nobody."""
HOME: Final = "/var/cache/engine"
LOAD_SECONDS: Final = 3600
"""How long an engine may take to load its model."""
SETTLE_SECONDS: Final = 10
"""How long a new replica is ready before an old one goes: routers find it by DNS in that time."""
SLACK_SECONDS: Final = 30
"""Beyond the time for requests in flight, for routers to notice and for the engine to end."""
HUNG_SECONDS: Final = 60
"""What is left to an engine or a router that has failed its liveness probe for a minute: most likely it ends nothing
that it has begun, and does not heed SIGTERM either."""
_AGENT_HEALTH: Final = {"httpGet": {"path": "/healthz", "port": AGENT_PORT}}
AGENT_PROBES: Final = {
    "startupProbe": {**_AGENT_HEALTH, "periodSeconds": 1, "failureThreshold": 60},
    "livenessProbe": {**_AGENT_HEALTH, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
}
"""Of an agent; the containers behind it wait for its start."""
_WORK: Final = MODEL_DIR.rpartition("/")[0]
_AGENT_RESOURCES: Final = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
_FETCH_RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}


def contract(deployment: ModelDeployment, setup: Setup, pin: str, wanted: WantedAdapters) -> EngineContract:
    """Return what an engine's pod is told. Adapters are in it only where it is started with them."""
    choice = deployment.spec.engine
    engine = ENGINES[choice.name]
    hot = engine.hot_loading(choice)
    return EngineContract(
        namespace=deployment.metadata.namespace or "",
        name=deployment.metadata.name,
        engine=choice.name,
        engine_port=engine.port,
        model=deployment.spec.model,
        pin=pin,
        base=names.served_base(pin),
        storage=setup.storage,
        cached=setup.cache is not None and not deployment.spec.model.uri.startswith("pvc://"),
        lora=bool(deployment.spec.adapters) or choice.takes_lora,
        max_lora_rank=engine.max_lora_rank(choice),
        hot_loading=hot,
        adapters=[] if hot else wanted.adapters,
        drain=drain_token(deployment),
        drain_seconds=setup.compute.termination_grace_period_seconds or DRAIN_SECONDS,
    )


def drain_token(deployment: ModelDeployment) -> str:
    """Return what only the kubelet says to an agent: nobody else is to take a pod out of service."""
    return hashlib.sha256(f"drain {deployment.metadata.uid}".encode()).hexdigest()[:32]


def wanted_bytes(wanted: WantedAdapters) -> bytes:
    """Return the file that tells agents which adapters to hold."""
    return canonical_json(wanted.to_wire())


def engine_objects(deployment: ModelDeployment, setup: Setup, pin: str, wanted: WantedAdapters) -> list[dict[str, Any]]:
    """Return ConfigMap, Service, Deployment, PodDisruptionBudget and NetworkPolicy of the engines. Raises Refused."""
    name = names.engine(deployment.metadata.name)
    labels = selector(deployment, names.ENGINE)
    engine = ENGINES[deployment.spec.engine.name]
    strategy = deployment.spec.strategy
    file = WANTED.rpartition("/")[2]
    rolling = {"maxSurge": strategy.max_surge, "maxUnavailable": strategy.max_unavailable}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", **_meta(deployment), "data": {file: wanted_bytes(wanted).decode()}},
        {
            "apiVersion": "v1",
            "kind": "Service",
            **_meta(deployment),
            "spec": {
                "clusterIP": "None",
                # Who gets requests is decided by health checks; one that is not ready may have other adapters loaded.
                "publishNotReadyAddresses": True,
                "selector": labels,
                "ports": [
                    {"name": "http", "port": engine.port, "targetPort": engine.port, "protocol": "TCP"},
                    {"name": "agent", "port": AGENT_PORT, "targetPort": AGENT_PORT, "protocol": "TCP"},
                ],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            **_meta(deployment),
            "spec": {
                "replicas": deployment.spec.replicas,
                "minReadySeconds": SETTLE_SECONDS,
                "progressDeadlineSeconds": LOAD_SECONDS + 600,
                "revisionHistoryLimit": 2,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
                "selector": {"matchLabels": labels},
                "template": _template(deployment, setup, contract(deployment, setup, pin, wanted)),
            },
        },
        budget(deployment, name, names.ENGINE),
        *([network_policy(deployment, engine.port)] if setup.network_policies else []),
    ]


def selector(deployment: ModelDeployment, component: str) -> dict[str, str]:
    """Return the labels that select the pods of a component."""
    return {names.LABEL_MODELDEPLOYMENT: deployment.metadata.name, names.LABEL_COMPONENT: component}


def metadata(deployment: ModelDeployment, name: str, component: str) -> dict[str, Any]:
    """Return the metadata of a child."""
    return {
        "name": name,
        "namespace": deployment.metadata.namespace,
        "labels": names.serving_labels(deployment.metadata.name, component),
        "ownerReferences": pods.owner_of(deployment, deployment.api_version, deployment.kind),
    }


def budget(deployment: ModelDeployment, name: str, component: str) -> dict[str, Any]:
    """Return the PodDisruptionBudget of a component: drains take one pod after the other."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(deployment, name, component),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(deployment, component)}},
    }


def network_policy(deployment: ModelDeployment, port: int) -> dict[str, Any]:
    """Return who may reach the engines: their port their own routers alone, their agents' port everybody.

    Nobody else needs the engine's port: kubelets probe it, but a node always reaches its own pods, and the agent beside
    it is on loopback, which no policy touches. Routers, the operator and Prometheus ask the agent, which tells the
    engine's metrics, too; the last two do from namespaces that are not known here.
    """
    routers = {"podSelector": {"matchLabels": selector(deployment, names.ROUTER)}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        **_meta(deployment),
        "spec": {
            "podSelector": {"matchLabels": selector(deployment, names.ENGINE)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [routers], "ports": [{"port": port, "protocol": "TCP"}]},
                {"ports": [{"port": AGENT_PORT, "protocol": "TCP"}]},
            ],
        },
    }


def drain_hook(deployment: ModelDeployment) -> dict[str, Any]:
    """Return what the kubelet calls before it stops a container that answers requests."""
    header = {"name": DRAIN_HEADER, "value": drain_token(deployment)}
    return {"preStop": {"httpGet": {"path": "/drain", "port": AGENT_PORT, "httpHeaders": [header]}}}


def spread(deployment: ModelDeployment, component: str) -> list[dict[str, Any]]:
    """Return that pods go to different nodes, where there are some."""
    return [
        {
            "topologyKey": "kubernetes.io/hostname",
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(deployment, component)},
        }
    ]


def _meta(deployment: ModelDeployment) -> dict[str, Any]:
    return {"metadata": metadata(deployment, names.engine(deployment.metadata.name), names.ENGINE)}


def _template(deployment: ModelDeployment, setup: Setup, told: EngineContract) -> dict[str, Any]:
    compute = setup.compute
    volumes, mounts, env = stores(deployment, setup)
    volumes += _volumes(deployment, setup)
    pod = {
        **pods.POD,
        # Named always: once another was named here, leaving it out would not take it back (`serviceAccount` keeps it).
        "serviceAccountName": "default",
        "securityContext": {
            **pods.POD["securityContext"],
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "terminationGracePeriodSeconds": told.drain_seconds + SLACK_SECONDS,
        "topologySpreadConstraints": spread(deployment, names.ENGINE),
        "initContainers": [_fetcher(setup, told, env, mounts), _agent(setup, told, env, mounts)],
        "containers": [_engine(deployment, setup, told)],
        "volumes": volumes,
    }
    return {
        "metadata": {
            "labels": {
                **(compute.pod_labels or {}),
                **names.serving_labels(deployment.metadata.name, names.ENGINE),
            },
            "annotations": {
                **(compute.pod_annotations or {}),
                names.ANNOTATION_CONTRACT: canonical_json(told.to_wire()).decode(),
                "kubectl.kubernetes.io/default-container": names.ENGINE_CONTAINER,
            },
        },
        "spec": {**pod, **pods.placement(compute)},
    }


def _volumes(deployment: ModelDeployment, setup: Setup) -> list[dict[str, Any]]:
    compute = setup.compute
    work: dict[str, Any] = {} if compute.scratch is None else {"sizeLimit": compute.scratch}
    file = ENGINE_CONTRACT.rpartition("/")[2]
    volumes: list[dict[str, Any]] = [
        {"name": "work", "emptyDir": work},
        {"name": "home", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "agent-tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": compute.shared_memory}},
        {"name": "contract", "downwardAPI": {"items": [pods.annotated_file(names.ANNOTATION_CONTRACT, file)]}},
        {"name": "adapters", "configMap": {"name": names.engine(deployment.metadata.name)}},
    ]
    if setup.cache is not None:
        volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": setup.cache}})
    return volumes


def _agents_mounts(told: EngineContract, mounts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    own: list[dict[str, Any]] = [
        {"name": "work", "mountPath": _WORK},
        {"name": "agent-tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        {"name": "contract", "mountPath": ENGINE_CONTRACT.rpartition("/")[0], "readOnly": True},
        {"name": "adapters", "mountPath": WANTED.rpartition("/")[0], "readOnly": True},
    ]
    return [*mounts, *own, *([{"name": "cache", "mountPath": CACHE_DIR}] if told.cached else [])]


def _fetcher(
    setup: Setup, told: EngineContract, env: list[dict[str, Any]], mounts: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        **pods.RECORDING,
        "name": names.MODEL_CONTAINER,
        "image": setup.agent_image,
        "args": ["fetch-model"],
        "env": env,
        "resources": _FETCH_RESOURCES,
        "volumeMounts": _agents_mounts(told, mounts),
    }


def _agent(
    setup: Setup, told: EngineContract, env: list[dict[str, Any]], mounts: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the agent, a native sidecar: there before the engine, gone after it. It does not wait for the engine."""
    return {
        **pods.CONTAINER,
        "name": names.AGENT_CONTAINER,
        "image": setup.agent_image,
        "args": ["serve"],
        "restartPolicy": "Always",
        "env": env,
        "ports": [{"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"}],
        **AGENT_PROBES,
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": AGENT_PORT}, "periodSeconds": 2, "timeoutSeconds": 2},
        "resources": _AGENT_RESOURCES,
        "volumeMounts": _agents_mounts(told, mounts),
    }


def _engine(deployment: ModelDeployment, setup: Setup, told: EngineContract) -> dict[str, Any]:
    engine = ENGINES[told.engine]
    gpus = setup.compute.gpus or 0
    launch = Launch(
        model=model_folder(told),
        base=told.base,
        port=engine.port,
        gpus=gpus,
        lora=told.lora,
        settings=deployment.spec.engine,
        adapters=[(adapter.served, f"{ADAPTERS_DIR}/{adapter.served}") for adapter in told.adapters],
        guard=f"{GUARD_MODULE}.Guard",
        environment={
            "HOME": HOME,
            "USER": "lorikeet",
            "XDG_CACHE_HOME": f"{HOME}/.cache",
            "PYTHONPATH": GUARD_DIR,
        },
    )
    how = engine.container(launch)
    users = [variable.to_wire() for variable in setup.compute.env or []]
    if taken := sorted({each["name"] for each in how["env"]} & {each["name"] for each in users}):
        raise Refused("InvalidSpec", f"compute.env may not set {taken[0]}, which Lorikeet sets itself: remove it")
    health = {"httpGet": {"path": engine.health_path, "port": engine.port}}
    mounts: list[dict[str, Any]] = [
        {"name": "work", "mountPath": _WORK, "readOnly": True},
        {"name": "home", "mountPath": HOME},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own
        *(mount for _, mount in claim(deployment)),
        *([{"name": "cache", "mountPath": CACHE_DIR, "readOnly": True}] if told.cached else []),
    ]
    return {
        **pods.CONTAINER,
        **how,
        "env": [*how["env"], *users],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "name": names.ENGINE_CONTAINER,
        "image": setup.engine_image,
        "ports": [{"name": "http", "containerPort": engine.port, "protocol": "TCP"}],
        "resources": pods.resources(setup.compute.resources, setup.compute.scratch, gpus, setup.gpu_resource),
        "startupProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": LOAD_SECONDS // 2},
        "readinessProbe": {**health, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {
            **health,
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
            "terminationGracePeriodSeconds": HUNG_SECONDS,
        },
        "lifecycle": drain_hook(deployment),
        "volumeMounts": mounts,
    }
