"""The pod that a run gets: resources, placement, identity. Kubernetes' own shapes, bounded."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from lorikeet_api.base import (
    AnnotationValue,
    EnvName,
    Image,
    LabelKey,
    LabelValue,
    Model,
    NameReference,
    ObjectName,
    Quantity,
    Text,
    cel,
    listed,
    mapped,
    unique,
)

RESERVED_ENV: Final = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE", "HF_TOKEN", "HOME", "USER", "VLLM_API_KEY",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_USE_RUST_FRONTEND", "LORIKEET_FOLDERS",
)  # fmt: skip
"""Environment that is not the user's: Lorikeet or its images set it, or it would open an engine's doors (vLLM's other
frontend runs no middleware, so no guard) or shut them to its own routers, or have a pod publish to itself."""


class KeySelector(Model):
    """One key of a Secret or ConfigMap in the job's namespace."""

    name: ObjectName
    """Name of the Secret or ConfigMap."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", min_length=1, max_length=253)]
    """Its key."""
    optional: bool | None = None
    """Whether the pod may start without it."""


class EnvSource(Model):
    """Where an environment variable's value comes from: exactly one of the two."""

    secret_key_ref: KeySelector | None = None
    """A key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """A key of a ConfigMap."""

    @model_validator(mode="after")
    def _one_arm(self) -> Self:
        if (self.secret_key_ref is None) == (self.config_map_key_ref is None):
            raise ValueError("give exactly one of secretKeyRef and configMapKeyRef")
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_one_arm` for the API server."""
        return [
            cel(
                "has(self.secretKeyRef) != has(self.configMapKeyRef)",
                "give exactly one of secretKeyRef and configMapKeyRef",
            )
        ]


class EnvVar(Model):
    """One environment variable of the trainer."""

    name: EnvName
    """Its name; those that Lorikeet sets itself (credentials, HOME, USER) are refused."""
    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Its value. Excludes `valueFrom`."""
    value_from: EnvSource | None = None
    """Where the value comes from. Excludes `value`."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if self.value is not None and self.value_from is not None:
            raise ValueError("give value or valueFrom, not both")
        if self.name in RESERVED_ENV:
            raise ValueError("this variable is set by Lorikeet")
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_checks` for the API server."""
        reserved = ", ".join(f"'{name}'" for name in RESERVED_ENV)
        return [
            cel("!(has(self.value) && has(self.valueFrom))", "give value or valueFrom, not both"),
            cel(f"!(self.name in [{reserved}])", "this variable is set by Lorikeet"),
        ]


class Toleration(Model):
    """A taint that the pod tolerates."""

    key: LabelKey | None = None
    """Taint key; absent with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared."""
    value: LabelValue | None = None
    """Taint value (operator Equal)."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect tolerated; absent: all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31536000)] | None = None
    """How long a NoExecute taint is tolerated, in seconds."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if self.key is None and self.operator != "Exists":
            raise ValueError("a toleration without key needs operator Exists")
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists takes no value")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds needs effect NoExecute")
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rules of `_checks` for the API server."""
        return [
            cel("has(self.key) || self.operator == 'Exists'", "a toleration without key needs operator Exists"),
            cel(
                "self.operator != 'Exists' || !has(self.value) || self.value == ''",
                "operator Exists takes no value",
            ),
            cel(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds needs effect NoExecute",
            ),
        ]


class Requirement(Model):
    """A condition on one label."""

    key: LabelKey
    """Label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value relates to `values`."""
    values: Annotated[list[LabelValue], listed(1, 64)] | None = None
    """Values for In and NotIn."""

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if (self.operator in ("In", "NotIn")) != (self.values is not None):
            raise ValueError("values go with In and NotIn, and only with them")
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_checks` for the API server."""
        return [
            cel(
                "(self.operator in ['In', 'NotIn']) == has(self.values)",
                "values go with In and NotIn, and only with them",
            )
        ]


class NodeSelectorTerm(Model):
    """All requirements must hold."""

    match_expressions: Annotated[list[Requirement], listed(1, 16)]
    """Requirements on the node's labels."""


class NodeSelector(Model):
    """Any of the terms must hold."""

    node_selector_terms: Annotated[list[NodeSelectorTerm], listed(1, 16)]
    """The terms."""


class PreferredNodeTerm(Model):
    """A wish about nodes with its weight."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """How much the wish counts."""
    preference: NodeSelectorTerm
    """The wish."""


class NodeAffinity(Model):
    """Rules about nodes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes must match."""
    preferred_during_scheduling_ignored_during_execution: Annotated[list[PreferredNodeTerm], listed(1, 16)] | None = (
        None
    )
    """Nodes should match."""


class LabelSelector(Model):
    """All of labels and requirements must hold."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    """Labels with their values."""
    match_expressions: Annotated[list[Requirement], listed(1, 16)] | None = None
    """Requirements on labels."""


class PodAffinityTerm(Model):
    """Pods of the same namespace that share a topology domain."""

    label_selector: LabelSelector
    """Which pods."""
    topology_key: LabelKey
    """Node label that names the domain."""


class WeightedPodAffinityTerm(Model):
    """A wish about pods with its weight."""

    weight: Annotated[int, Field(ge=1, le=100)]
    """How much the wish counts."""
    pod_affinity_term: PodAffinityTerm
    """The wish."""


class PodAffinity(Model):
    """Rules about other pods."""

    required_during_scheduling_ignored_during_execution: Annotated[list[PodAffinityTerm], listed(1, 16)] | None = None
    """Must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[WeightedPodAffinityTerm], listed(1, 16)] | None
    ) = None
    """Should hold."""


class Affinity(Model):
    """Where the pod may, should, or must not run; Kubernetes' own meaning."""

    node_affinity: NodeAffinity | None = None
    """Rules about nodes."""
    pod_affinity: PodAffinity | None = None
    """Pods to be near to."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods to be away from."""


_CLASS_WITHOUT_GPU: Final = "gpuClass has no meaning with gpus 0: remove one of them"

ResourceMap = Annotated[dict[LabelKey, Quantity], Field(max_length=16)]


class Resources(Model):
    """Requests and limits of the trainer container; the GPUs of `gpus` are added to both."""

    requests: ResourceMap | None = None
    """What the scheduler sets aside."""
    limits: ResourceMap | None = None
    """What the container may use at most."""


class PodSettings(Model):
    """What a pod asks for, whatever it does."""

    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of the pod."""
    gpu_class: ObjectName | None = None
    """A GPU class of the profile: resource name, node selector and tolerations. Absent: `nvidia.com/gpu`."""
    resources: Resources | None = None
    """CPU, memory and ephemeral storage. Default: requests of 1 CPU and 2Gi."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = None
    """Labels that the node must have, beside those of the GPU class."""
    tolerations: Annotated[list[Toleration], listed(0, 32)] | None = None
    """Taints that the pod tolerates, beside those of the GPU class."""
    affinity: Affinity | None = None
    """Affinity rules."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pod."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass of the pod."""
    service_account_name: ObjectName | None = None
    """ServiceAccount of the pod; gives S3 access by workload identity. No API token is mounted."""
    image_pull_secrets: Annotated[list[NameReference], mapped("name", 16), unique("name")] | None = None
    """Secrets with which the image is pulled."""
    env: Annotated[list[EnvVar], mapped("name", 64), unique("name")] | None = None
    """More environment of the container, such as `HTTPS_PROXY`."""
    pod_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = None
    """More labels of the pod; those by which Lorikeet finds it stay as they are."""
    pod_annotations: Annotated[dict[LabelKey, AnnotationValue], Field(max_length=32)] | None = None
    """Annotations of the pod."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    """Seconds between the request to stop and the kill."""
    shared_memory: Quantity | None = None
    """Size of /dev/shm, counted as memory. Default: 1Gi."""
    scratch: Quantity | None = None
    """Size limit of the volume for what the pod fetches and writes; also requested as ephemeral storage. Absent:
    none."""

    @model_validator(mode="after")
    def _class_needs_gpu(self) -> Self:
        if self.gpus == 0 and self.gpu_class is not None:
            raise ValueError(_CLASS_WITHOUT_GPU)
        return self

    @staticmethod
    def cel_rules() -> list[dict[str, str]]:
        """Return the rule of `_class_needs_gpu` for the API server."""
        return [cel("!has(self.gpuClass) || !has(self.gpus) || self.gpus > 0", _CLASS_WITHOUT_GPU)]


class Compute(PodSettings):
    """What the trainer's pod asks for. Absent fields come from the profile's `defaults.compute`."""

    gpus: Annotated[int, Field(ge=0, le=1)] | None = None
    """GPUs of the pod. 0 trains on the CPU. Default: 1."""
    termination_grace_period_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    """Seconds between the request to stop and the kill. Default: 120."""
    image: Image | None = None
    """Trainer image. Absent: the profile's, else the one that the operator was installed with."""


class EngineCompute(PodSettings):
    """What an engine's pod asks for. Absent fields come from the profile's `defaults.engineCompute`."""

    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of each replica. 0 serves on the CPU. Default: 1."""
    termination_grace_period_seconds: Annotated[int, Field(ge=10, le=86400)] | None = None
    """Seconds that requests in flight get to end when a replica is stopped. Default: 300."""


class GpuClass(Model):
    """One kind of GPU of the cluster: what to ask for and where it is."""

    name: ObjectName
    """Name by which jobs ask for it in `compute.gpuClass`."""
    resource_name: LabelKey = "nvidia.com/gpu"
    """Extended resource of the device: `nvidia.com/gpu`, a MIG slice, `amd.com/gpu`."""
    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = None
    """Labels of the nodes that have it."""
    tolerations: Annotated[list[Toleration], listed(0, 32)] | None = None
    """Taints of those nodes."""
    description: Text | None = None
    """A sentence for the people who choose."""
