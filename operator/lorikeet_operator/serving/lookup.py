"""Builds the Job that finds out what model and adapter URIs mean, in the namespace, and reads what it says (pure)."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

from lorikeet_api import names
from lorikeet_api.contract import FINAL_EXIT_CODES, canonical_json
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.serving import RESOLVE_CONTRACT, ResolveContract, ResolveRecord
from lorikeet_operator import pods
from lorikeet_operator.serving.setup import Setup
from lorikeet_operator.serving.stores import stores

RETRIES: Final = 6
KEPT_SECONDS: Final = 300
"""How long a Job and its pod are kept; what was not found is looked for again after that."""


def lookup_job(deployment: ModelDeployment, setup: Setup, ask: ResolveContract, memory: str) -> dict[str, Any]:
    """Return the batch Job that answers `ask`; another question is another Job."""
    contract = canonical_json(ask.to_wire()).decode()
    digest = hashlib.sha256(contract.encode()).hexdigest()[:8]
    name = f"{deployment.metadata.name}-resolve-{digest}"
    labels = names.serving_labels(deployment.metadata.name, names.RESOLVE)
    folder, _, file = RESOLVE_CONTRACT.rpartition("/")
    volumes, mounts, env = stores(deployment, setup)
    spec = {
        **pods.POD,
        "restartPolicy": "Never",
        "containers": [
            {
                **pods.RECORDING,
                "name": names.AGENT_CONTAINER,
                "image": setup.agent_image,
                "args": ["resolve"],
                "env": env,
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {"cpu": "1", "memory": memory},
                },
                "volumeMounts": [
                    *mounts,
                    {"name": "contract", "mountPath": folder, "readOnly": True},
                    {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
                ],
            }
        ],
        "volumes": [
            *volumes,
            {"name": "contract", "downwardAPI": {"items": [pods.annotated_file(names.ANNOTATION_CONTRACT, file)]}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }
    # Not where the engines go, which is for its GPUs.
    anywhere = setup.compute.model_copy(update=dict.fromkeys(("node_selector", "affinity", "runtime_class_name")))
    final = {"containerName": names.AGENT_CONTAINER, "operator": "In", "values": list(FINAL_EXIT_CODES)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": deployment.metadata.namespace,
            "labels": labels,
            "ownerReferences": pods.owner_of(deployment, deployment.api_version, deployment.kind),
        },
        "spec": {
            "backoffLimit": RETRIES,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
            "template": {
                "metadata": {"labels": labels, "annotations": {names.ANNOTATION_CONTRACT: contract}},
                "spec": {**spec, **pods.placement(anywhere)},
            },
        },
    }


def said(job_pods: Sequence[dict[str, Any]]) -> ResolveRecord | None:
    """Return what the newest pod of the Job says, if one has ended and left its record."""
    newest = sorted(job_pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "", reverse=True)
    for pod in newest:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            ended = status.get("state", {}).get("terminated")
            if ended is None:
                continue
            try:
                return ResolveRecord.model_validate_json(ended.get("message") or "")
            except ValidationError:
                text = (ended.get("message") or "")[-300:].strip()
                message = f"the pod that looks up URIs ended with code {ended.get('exitCode')}: {text}"
                return ResolveRecord(reason="InternalError", message=message[:600], retryable=True)
    return None
