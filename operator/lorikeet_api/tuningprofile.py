"""TuningProfile: what a platform team sets once for all jobs of a cluster."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from lorikeet_api.base import Image, Model, ObjectName, S3Uri, Text, cel, mapped, unique
from lorikeet_api.compute import Compute, EngineCompute, GpuClass
from lorikeet_api.contract import StorageAccess
from lorikeet_api.resource import Resource
from lorikeet_api.tracking import Tracking
from lorikeet_api.training import DataSource, Training


class Storage(StorageAccess):
    """Where artifacts go, and how S3 is reached."""

    uri: S3Uri | None = None
    """Prefix of outputs: a job without `output.uri` publishes below `<uri>/<namespace>/<name>`."""
    secret_name: ObjectName | None = None
    """Secret in each job's namespace with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and optionally
    AWS_SESSION_TOKEN. Absent: the pod's own identity (`serviceAccountName`)."""
    service_account_name: ObjectName | None = None
    """ServiceAccount in each job's namespace that carries the S3 identity (IRSA, Pod Identity)."""
    ca_config_map_name: ObjectName | None = None
    """ConfigMap in each job's namespace whose key `ca.crt` holds the CAs to trust, and no others."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if self.secret_name is not None and self.service_account_name is not None:
            raise ValueError("give secretName or serviceAccountName, not both")
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_checks` for the API server."""
        return [
            cel(
                "!(has(self.secretName) && has(self.serviceAccountName))",
                "give secretName or serviceAccountName, not both",
            )
        ]


class Images(Model):
    """Images of the workloads. Absent: those that the operator was installed with."""

    trainer: Image | None = None
    """Trainer image."""
    vllm: Image | None = None
    """Image of the vLLM engine."""
    router: Image | None = None
    """Image of the router: Envoy."""


class Defaults(Model):
    """Values for fields that a job leaves out."""

    training: Training = Training()
    """Hyperparameters; they go before Lorikeet's own defaults."""
    tracking: Tracking | None = None
    """Trackers of jobs that name none; a job's own take their place, whole. Secrets are those of each job's namespace.
    """
    general: DataSource | None = None
    """General set (`dataset.general`) of jobs that name none; those of objective reward have none. A claim is that of
    each job's namespace; a gated `hf://` one is opened by the job's `model.secretRef`."""
    compute: Compute = Compute()
    """Settings of trainers' pods. Maps and lists are taken whole, not merged."""
    engine_compute: EngineCompute = EngineCompute()
    """Settings of engines' pods, in the same way."""


class ModelCache(Model):
    """Where engines keep base models, so that each is fetched once and not by every replica."""

    persistent_volume_claim: ObjectName
    """A claim in each ModelDeployment's namespace, which all of its nodes can mount for writing (ReadWriteMany)."""


class TuningProfileSpec(Model):
    """Storage, images, defaults and GPU classes."""

    description: Text | None = None
    """A sentence for the people who choose."""
    storage: Storage = Storage()
    """Where artifacts go, and how S3 is reached."""
    images: Images = Images()
    """Images of the workloads."""
    defaults: Defaults = Defaults()
    """Values for fields that a job leaves out."""
    gpu_classes: Annotated[list[GpuClass], mapped("name", 64), unique("name")] = []
    """GPU kinds that jobs can ask for by name."""
    model_cache: ModelCache | None = None
    """Where engines keep base models. Absent: each replica fetches its own copy."""
    allow_cpu_fallback: bool = False
    """Let a job that asked for a GPU train on the CPU when its pod finds none. For development clusters
    whose nodes only advertise GPUs; anywhere else a missing GPU is an error."""


class TuningProfile(Resource):
    """Storage, images, defaults and GPU classes that a platform team sets for all jobs of the cluster."""

    crd: ClassVar[dict[str, Any]] = {
        "plural": "tuningprofiles",
        "singular": "tuningprofile",
        "shortNames": ["tprof"],
        "categories": ["lorikeet"],
        "scope": "Cluster",
        "columns": [
            {"name": "Storage", "type": "string", "jsonPath": ".spec.storage.uri"},
            {"name": "Endpoint", "type": "string", "jsonPath": ".spec.storage.endpoint", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
        "rules": [],
    }

    api_version: Literal["lorikeet.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["TuningProfile"]
    """TuningProfile."""
    spec: TuningProfileSpec = TuningProfileSpec()
    """Storage, images, defaults and GPU classes."""
