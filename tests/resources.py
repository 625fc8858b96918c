"""Resources for tests: the shortest ones, with any part replaced."""

from typing import Any

from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.tuningprofile import TuningProfile

UID = "11111111-2222-3333-4444-555555555555"


def job_body(name: str = "sql-v1", namespace: str = "team-a", **spec: Any) -> dict[str, Any]:
    """Return a FineTuneJob as a user writes it; `spec` replaces or adds top-level fields of its spec."""
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "s3://models/smollm2-135m"},
            "dataset": {"train": [{"uri": "s3://datasets/sql/train.jsonl"}]},
            **spec,
        },
    }


def job(name: str = "sql-v1", **spec: Any) -> FineTuneJob:
    """Return a FineTuneJob as the API server hands it out."""
    body = job_body(name, **spec)
    body["metadata"] |= {"uid": UID, "generation": 1, "creationTimestamp": "2026-11-23T10:00:00Z"}
    return FineTuneJob.parse(body)


def profile_body(name: str = "default", **spec: Any) -> dict[str, Any]:
    """Return a TuningProfile as a platform team writes it."""
    storage = {"uri": "s3://adapters", "endpoint": "http://s3:7070", "secretName": "s3-credentials"}
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "TuningProfile",
        "metadata": {"name": name},
        "spec": {"storage": storage, **spec},
    }


def profile(name: str = "default", **spec: Any) -> TuningProfile:
    """Return a TuningProfile as the API server hands it out."""
    body = profile_body(name, **spec)
    body["metadata"] |= {"uid": UID, "generation": 1}
    return TuningProfile.parse(body)


def deployment_body(name: str = "assistant", namespace: str = "team-a", **spec: Any) -> dict[str, Any]:
    """Return a ModelDeployment as a user writes it; `spec` replaces or adds top-level fields of its spec."""
    return {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"uri": "s3://models/smollm2-135m"}, **spec},
    }


def deployment(
    name: str = "assistant", namespace: str = "team-a", status: dict[str, Any] | None = None, **spec: Any
) -> ModelDeployment:
    """Return a ModelDeployment as the API server hands it out."""
    body = deployment_body(name, namespace, **spec)
    body["metadata"] |= {"uid": UID, "generation": 1, "creationTimestamp": "2026-11-23T10:00:00Z"}
    return ModelDeployment.parse({**body, "status": status or {}})
