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
ANNOTATION_CONTRACT: Final = f"{GROUP}/contract"
"""Of a run's pods: the contract, as JSON."""
ANNOTATION_PROGRESS_CA: Final = f"{GROUP}/progress-ca"
"""Of a trainer's pods: the certificate authorities by which it knows the progress endpoint, as PEM."""
MANAGED_BY: Final = "lorikeet"


def training_job(name: str) -> str:
    """Return the name of the batch Job of a FineTuneJob."""
    return f"{name}-train"


def agent_job(name: str, task: Task) -> str:
    """Return the name of the batch Job in which the agent does `task` for a FineTuneJob."""
    return f"{name}-{task}"


def child_labels(name: str, component: str = TRAINER) -> dict[str, str]:
    """Return the labels of a child of the FineTuneJob `name`; `component` says what it does."""
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_NAME: f"lorikeet-{component}",
        LABEL_INSTANCE: name,
        LABEL_COMPONENT: component,
        LABEL_PART_OF: "lorikeet",
        LABEL_FINETUNEJOB: name,
    }
