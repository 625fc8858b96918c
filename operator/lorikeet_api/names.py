"""Names and labels of what Lorikeet makes, in one place."""

from typing import Final

GROUP: Final = "lorikeet.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
FIELD_MANAGER: Final = "lorikeet-operator"

DEFAULT_PROFILE: Final = "default"

MAX_JOB_NAME: Final = 50
"""Longest FineTuneJob name: `<name>-train-0` must be a pod's host name (63), and Kubernetes adds to it."""

TRAINER_CONTAINER: Final = "trainer"

LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
LABEL_NAME: Final = "app.kubernetes.io/name"
LABEL_INSTANCE: Final = "app.kubernetes.io/instance"
LABEL_COMPONENT: Final = "app.kubernetes.io/component"
LABEL_PART_OF: Final = "app.kubernetes.io/part-of"
LABEL_FINETUNEJOB: Final = f"{GROUP}/finetunejob"
MANAGED_BY: Final = "lorikeet"


def training_job(name: str) -> str:
    """Return the name of the batch Job of a FineTuneJob."""
    return f"{name}-train"


def run_config_map(name: str) -> str:
    """Return the name of the ConfigMap that holds a FineTuneJob's contract."""
    return f"{name}-run"


def child_labels(name: str) -> dict[str, str]:
    """Return the labels of every child of the FineTuneJob `name`."""
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_NAME: "lorikeet-trainer",
        LABEL_INSTANCE: name,
        LABEL_COMPONENT: "trainer",
        LABEL_PART_OF: "lorikeet",
        LABEL_FINETUNEJOB: name,
    }
