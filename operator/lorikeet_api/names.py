"""Names and labels of what Lorikeet makes, in one place."""

from typing import Final, Literal

GROUP: Final = "lorikeet.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
FIELD_MANAGER: Final = "lorikeet-operator"
PROGRESS_MANAGER: Final = "lorikeet-progress"
"""Owns `status.progress`, which any replica writes."""

DEFAULT_PROFILE: Final = "default"

MAX_JOB_NAME: Final = 50
"""Longest FineTuneJob name: `<name>-train-0` must be a pod's host name (63), and Kubernetes adds to it."""

MAX_DEPLOYMENT_NAME: Final = 45
"""Longest ModelDeployment name: `<name>-engine-<hash>-<hash>` must be a pod's host name (63)."""

TRAINER: Final = "trainer"
TRAINER_CONTAINER: Final = "trainer"
AGENT_CONTAINER: Final = "agent"
RUN_CONTAINERS: Final = (TRAINER_CONTAINER, AGENT_CONTAINER)
"""The containers that leave a record."""

FINALIZER: Final = f"{GROUP}/cleanup"
"""On FineTuneJobs whose deletion deletes what they have published."""

Task = Literal["preflight", "recover", "cleanup"]
"""What the agent does for a run."""

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_PART_OF: Final = "app.kubernetes.io/part-of"
LABEL_FINETUNEJOB: Final = f"{GROUP}/finetunejob"
LABEL_MODELDEPLOYMENT: Final = f"{GROUP}/modeldeployment"
ANNOTATION_CONTRACT: Final = f"{GROUP}/contract"
"""Of a run's pods: the contract, as JSON."""
ANNOTATION_PROGRESS_CA: Final = f"{GROUP}/progress-ca"
"""Of a trainer's pods: the certificate authorities by which it knows the progress endpoint, as PEM."""
ANNOTATION_WANTED: Final = f"{GROUP}/wanted"
"""Of pods that serve: the fingerprint of the file that they are to have; a change makes the kubelet bring it now."""
MANAGED_BY: Final = "lorikeet"

ENGINE: Final = "engine"
ROUTER: Final = "router"
RESOLVE: Final = "resolve"
ENGINE_CONTAINER: Final = "engine"
ROUTER_CONTAINER: Final = "envoy"
MODEL_CONTAINER: Final = "model"
"""The init container that fetches the base model."""


def training_job(name: str) -> str:
    """Return the name of the batch Job of a FineTuneJob."""
    return f"{name}-train"


def agent_job(name: str, task: Task) -> str:
    """Return the name of the batch Job in which the agent does `task` for a FineTuneJob."""
    return f"{name}-{task}"


def engine(deployment: str) -> str:
    """Return the name of the engines of a ModelDeployment: of their Deployment, Service, budget and ConfigMap."""
    return f"{deployment}-engine"


def router(deployment: str) -> str:
    """Return the name of its routers: of their Deployment, budget and ConfigMap; the Service has its own name."""
    return f"{deployment}-router"


def served_adapter(name: str, sha256: str) -> str:
    """Return the name under which engines serve an adapter with this manifest."""
    return f"{name}-{sha256[:8]}"


def served_base(pin: str) -> str:
    """Return the name under which engines serve a base model with this pin."""
    return f"base-{pin[:8]}"


def child_labels(name: str, component: str = TRAINER) -> dict[str, str]:
    """Return the labels of a child of the FineTuneJob `name`; `component` says what it does."""
    return {**_labels(name, component), LABEL_FINETUNEJOB: name}


def serving_labels(name: str, component: str) -> dict[str, str]:
    """Return the labels of a child of the ModelDeployment `name`; `component` says what it does."""
    return {**_labels(name, component), LABEL_MODELDEPLOYMENT: name}


def _labels(instance: str, component: str) -> dict[str, str]:
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_NAME: f"lorikeet-{component}",
        LABEL_INSTANCE: instance,
        LABEL_COMPONENT: component,
        LABEL_PART_OF: "lorikeet",
    }
