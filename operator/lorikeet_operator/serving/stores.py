"""How the containers of a ModelDeployment that open S3, the hub or a claim reach them (pure)."""

from typing import Any, TypeAlias
from urllib.parse import urlsplit

from lorikeet_api.contract import PVC_DIR
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_operator import pods
from lorikeet_operator.serving.setup import Setup

Objects: TypeAlias = list[dict[str, Any]]


def stores(deployment: ModelDeployment, setup: Setup) -> tuple[Objects, Objects, Objects]:
    """Return volumes, their mounts, and the environment: credentials, authorities, the model's claim."""
    hub = deployment.spec.model.secret_ref
    env = pods.store_environment(setup.secret, hub.name if hub else None, setup.ca, setup.compute.env)
    parts = [pods.ca_volume(setup.ca)] if setup.ca is not None else []
    parts += claim(deployment)
    return [{"name": mount["name"], **source} for source, mount in parts], [mount for _, mount in parts], env


def claim(deployment: ModelDeployment) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the volume of the claim that holds the base model, and its mount, where a claim does."""
    location = urlsplit(deployment.spec.model.uri)
    if location.scheme != "pvc":
        return []
    name = location.netloc
    source = {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}
    return [(source, {"name": "model-claim", "mountPath": f"{PVC_DIR}/{name}", "readOnly": True})]
