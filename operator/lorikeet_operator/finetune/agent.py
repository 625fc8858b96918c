"""Builds the Jobs of a run that do not train: on a CPU, for seconds, in its namespace (pure)."""

from typing import Any, Final

from lorikeet_api import names
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_operator import pods
from lorikeet_operator.finetune import job as build

RETRIES: Final = 10
"""With the pauses of the Job controller half an hour in which a store may come back; no GPU waits meanwhile."""
KEPT_SECONDS: Final = 3600
"""How long the Job and its pod, with the log, are there to be read."""
CLEANUP_SECONDS: Final = 600
"""How long a deletion waits for its cleaning."""
MEMORY: Final = "1Gi"
"""What it may use, unless the operator's settings say otherwise."""
SCRATCH: Final = "2Gi"
"""Room for the data of which preflight makes tokens (1 GiB at most), a part of these, and what describes a model."""
_ANYWHERE: Final = dict.fromkeys(("node_selector", "affinity", "runtime_class_name"))
"""These choose nodes by their GPUs, and any node will do; also a tainted one, where there is no other."""


def cleanup_name(job: FineTuneJob) -> str:
    """Return the name of the batch Job that cleans up.

    With a piece of the uid, since a job of the same name may come next; a Job's name is a label of its pods.
    """
    return f"{job.metadata.name}-clean-{(job.metadata.uid or '')[:6]}"


def agent_job(
    job: FineTuneJob, resolved: Resolved, task: names.Task, image: str, memory: str = MEMORY
) -> dict[str, Any]:
    """Return the batch Job that does `task` for a run: with its credentials and claims, on any node, without GPUs."""
    volumes, mounts = build.volumes(resolved)
    pod: dict[str, Any] = {
        **build.POD,
        "containers": [
            {
                **pods.RECORDING,
                "name": names.AGENT_CONTAINER,
                "image": image,
                "args": [task],
                "env": build.environment(resolved),
                "resources": {
                    "requests": {"cpu": "100m", "memory": "256Mi"},
                    "limits": {"cpu": "1", "memory": memory},
                },
                "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the pod's own
            }
        ],
        "volumes": [*volumes, {"name": "tmp", "emptyDir": {"sizeLimit": SCRATCH}}],
        **pods.placement(resolved.compute.model_copy(update=_ANYWHERE)),
    }
    metadata = build.metadata(job, names.agent_job(job.metadata.name, task), task)
    if task == "cleanup":
        # It has to outlive a FineTuneJob that is deleted with all that it owns; its ttl removes it.
        del metadata["ownerReferences"]
        metadata["name"] = cleanup_name(job)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            # A cleaning that nobody waits for any more must not come upon what is made next.
            **({"activeDeadlineSeconds": CLEANUP_SECONDS} if task == "cleanup" else {}),
            "backoffLimit": RETRIES,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": build.failure_policy(names.AGENT_CONTAINER),
            "template": build.template(job, resolved, task, pod),
        },
    }
