"""Builds the objects of a run from its resolved request (pure: equal input, equal output)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from lorikeet_api import names, progress
from lorikeet_api.contract import (
    CONTRACT_PATH,
    EXIT_PREEMPTED,
    FINAL_EXIT_CODES,
    PVC_DIR,
    WORK_DIR,
    canonical_json,
    data_sources,
)
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_api.tracking import MLFLOW_KEYS, WANDB_KEY, Tracking
from lorikeet_operator import pods

CONTRACT_FILE: Final = CONTRACT_PATH.rsplit("/", 1)[1]
CONTRACT_DIR: Final = CONTRACT_PATH.rsplit("/", 1)[0]
POD: Final[dict[str, Any]] = {**pods.POD, "restartPolicy": "Never"}
"""What every pod of a run has."""


@dataclass(frozen=True)
class ProgressEndpoint:
    """Where trainers tell how far they are."""

    url: str
    """Scheme and host."""
    authorities: str
    """The certificate authorities by which it is known, as PEM."""


def training_job(job: FineTuneJob, resolved: Resolved, endpoint: ProgressEndpoint | None = None) -> dict[str, Any]:
    """Return the batch Job that runs the trainer.

    Exit codes that cannot change end it at once; a disruption (drain, preemption) does not count as a retry. A code
    of 137 ends nothing here: it may be memory or the end of a grace period, which the pod's status alone tells apart.
    """
    trust = {} if endpoint is None else {names.ANNOTATION_PROGRESS_CA: endpoint.authorities}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, names.training_job(job.metadata.name)),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "completionMode": "Indexed",
            "backoffLimit": job.spec.max_retries,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": failure_policy(names.TRAINER_CONTAINER),
            "template": template(job, resolved, names.TRAINER, _pod_spec(job, resolved, endpoint), trust),
        },
    }


def failure_policy(container: str) -> dict[str, Any]:
    """Return which ends of a pod count: a disruption does not, and what cannot change ends the Job at once."""
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            _on_exit(container, "Ignore", EXIT_PREEMPTED),
            _on_exit(container, "FailJob", *FINAL_EXIT_CODES),
        ]
    }


def _on_exit(container: str, action: str, *codes: int) -> dict[str, Any]:
    on = {"containerName": container, "operator": "In", "values": list(codes)}
    return {"action": action, "onExitCodes": on}


def template(
    job: FineTuneJob,
    resolved: Resolved,
    component: str,
    spec: dict[str, Any],
    annotations: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return a pod template: the user's labels and annotations, and ours over them, with the contract among those."""
    compute = resolved.compute
    contract = canonical_json(resolved.contract.to_wire()).decode()
    return {
        "metadata": {
            "labels": {**(compute.pod_labels or {}), **names.child_labels(job.metadata.name, component)},
            "annotations": {
                **(compute.pod_annotations or {}),
                names.ANNOTATION_CONTRACT: contract,
                **annotations,
            },
        },
        "spec": spec,
    }


def metadata(job: FineTuneJob, name: str, component: str = names.TRAINER) -> dict[str, Any]:
    """Return the metadata of a child: it goes with the FineTuneJob, and its changes are seen by its labels."""
    return {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": names.child_labels(job.metadata.name, component),
        "ownerReferences": pods.owner_of(job, job.api_version, job.kind),
    }


def _pod_spec(job: FineTuneJob, resolved: Resolved, endpoint: ProgressEndpoint | None) -> dict[str, Any]:
    compute = resolved.compute
    volumes, mounts = _trainer_volumes(resolved, endpoint)
    pod: dict[str, Any] = {
        **POD,
        "terminationGracePeriodSeconds": resolved.contract.grace_period_seconds,
        "containers": [
            {
                **pods.RECORDING,
                "name": names.TRAINER_CONTAINER,
                "image": resolved.image,
                # The user's own come last, and so win.
                "env": [*_telling(job, endpoint), *_trackers_keys(resolved), *environment(resolved)],
                "resources": _resources(resolved),
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    return {**pod, **pods.placement(compute)}


def _telling(job: FineTuneJob, endpoint: ProgressEndpoint | None) -> list[dict[str, Any]]:
    """Return the environment by which a trainer tells how far it is, ours or any with transformers from 5.4 on."""
    if endpoint is None:
        return []
    values = {
        progress.URL_VARIABLE: endpoint.url + progress.path(job.metadata.namespace or "", job.metadata.name),
        progress.CA_VARIABLE: f"{CONTRACT_DIR}/{progress.CA_FILE}",
        progress.TOKEN_VARIABLE: f"{progress.TOKEN_DIR}/{progress.TOKEN_FILE}",
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _trackers_keys(resolved: Resolved) -> list[dict[str, Any]]:
    """Return the environment that opens trackers. A key that is missing costs a warning, as a tracker that is away."""
    tracking = resolved.contract.tracking or Tracking()
    mlflow = tracking.mlflow.secret_ref if tracking.mlflow is not None else None
    wandb = tracking.wandb.secret_ref if tracking.wandb is not None else None
    keys = [(key, mlflow.name) for key in MLFLOW_KEYS] if mlflow is not None else []
    keys += [(WANDB_KEY, wandb.name)] if wandb is not None else []
    return [pods.from_secret(key, secret, optional=True) for key, secret in keys]


def environment(resolved: Resolved) -> list[dict[str, Any]]:
    """Return the environment by which a container reaches the run's stores, and what the user adds."""
    hub = resolved.contract.model.secret_ref
    return pods.store_environment(
        resolved.secret_name, hub.name if hub else None, resolved.ca_config_map_name, resolved.compute.env
    )


def _resources(resolved: Resolved) -> dict[str, Any]:
    compute = resolved.compute
    return pods.resources(compute.resources, compute.scratch, resolved.contract.gpus, resolved.gpu_resource)


def _trainer_volumes(
    resolved: Resolved, endpoint: ProgressEndpoint | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the trainer's volumes and their mounts: scratch, /tmp, /dev/shm, token, contract, CAs, claims."""
    work: dict[str, Any] = {}
    if resolved.compute.scratch is not None:
        work["sizeLimit"] = resolved.compute.scratch
    shm = {"medium": "Memory", "sizeLimit": resolved.compute.shared_memory}
    parts: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"emptyDir": work}, {"name": "work", "mountPath": WORK_DIR}),
        ({"emptyDir": {}}, {"name": "tmp", "mountPath": "/tmp"}),  # noqa: S108 - the pod's own
        ({"emptyDir": shm}, {"name": "shm", "mountPath": "/dev/shm"}),  # noqa: S108 - the pod's own
    ]
    if endpoint is not None:
        token = {
            "audience": progress.AUDIENCE,
            "expirationSeconds": progress.TOKEN_SECONDS,
            "path": progress.TOKEN_FILE,
        }
        projected = {"projected": {"sources": [{"serviceAccountToken": token}]}}
        parts.append((projected, {"name": "token", "mountPath": progress.TOKEN_DIR, "readOnly": True}))
    trust = {} if endpoint is None else {progress.CA_FILE: names.ANNOTATION_PROGRESS_CA}
    shared, mounts = volumes(resolved, trust)
    own = [{"name": mount["name"], **source} for source, mount in parts]
    return [*own, *shared], [*(mount for _, mount in parts), *mounts]


def volumes(
    resolved: Resolved, files: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the volumes through which a container reaches the run's stores, and their mounts: contract, CAs, claims.

    `files` are names of files that stand beside the contract, and the annotations that hold them.
    """
    annotated = [
        pods.annotated_file(annotation, path)
        for path, annotation in {CONTRACT_FILE: names.ANNOTATION_CONTRACT, **files}.items()
    ]
    contract = {"name": "contract", "mountPath": CONTRACT_DIR, "readOnly": True}
    parts: list[tuple[dict[str, Any], dict[str, Any]]] = [({"downwardAPI": {"items": annotated}}, contract)]
    if resolved.ca_config_map_name is not None:
        parts.append(pods.ca_volume(resolved.ca_config_map_name))
    for number, claim in enumerate(claims(resolved)):
        volume = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        parts.append((volume, {"name": f"claim-{number}", "mountPath": f"{PVC_DIR}/{claim}", "readOnly": True}))
    return [{"name": mount["name"], **source} for source, mount in parts], [mount for _, mount in parts]


def claims(resolved: Resolved) -> list[str]:
    """Return the PersistentVolumeClaims that the run reads, by name."""
    uris = [source.uri for source in (resolved.contract.model, *data_sources(resolved.contract))]
    return sorted({urlsplit(uri).netloc for uri in uris if uri.startswith("pvc://")})
