"""Conditions and their reasons: the vocabulary in which resources tell their story."""

from typing import Annotated, Final, Literal

from pydantic import Field

from lorikeet_api.base import Model
from lorikeet_api.signs import SignName

Phase = Literal["Pending", "Validating", "Starting", "Running", "Suspended", "Succeeded", "Failed"]
FINAL: Final[frozenset[Phase]] = frozenset({"Succeeded", "Failed"})
"""The phases of a run that has ended."""
ConditionType = Literal["Validated", "Suspended", "Scheduled", "Started", "Complete", "Failed"]
ConditionStatus = Literal["True", "False", "Unknown"]

OperatorReason = Literal[
    # Validated
    "Resolved",
    "Checking",
    "ProfileNotFound",
    "GpuClassUnknown",
    "OutputUnknown",
    "InvalidSpec",
    "NameTaken",
    "SameRunUnderway",
    "JobNotFound",
    "JobNotFinished",
    "JobFailed",
    "Forbidden",
    # Suspended
    "SuspendedByUser",
    "Resumed",
    # Scheduled, Started
    "Waiting",
    "PodRefused",
    "Unschedulable",
    "Bound",
    "ImagePullFailed",
    "ContainerConfigInvalid",
    "ContainerNotStarted",
    "PullingImage",
    "PodNotPrepared",
    "TrainerRunning",
    # Complete, Failed
    "InProgress",
    "Published",
    "Adopted",
    "RecordLost",
    "JobDeleted",
    "DeadlineExceeded",
    "PreemptedTooOften",
]
"""Reasons that the operator finds."""

TrainerReason = Literal[
    "Checked",
    "Published",
    "Adopted",
    "Deleted",
    "InvalidContract",
    "ModelNotFound",
    "ModelInvalid",
    "DataNotFound",
    "DataInvalid",
    "SourceChanged",
    "StorageRefused",
    "StorageUnreachable",
    "OutputConflict",
    "NoGpu",
    "MethodNotApplicable",
    "OutOfMemory",
    "OutOfDisk",
    "LossNotFinite",
    "Stalled",
    "Preempted",
    "InternalError",
    SignName,
]
"""Reasons that the pods of a run give in their record; a sign is one where the request fails on it."""

Reason = OperatorReason | TrainerReason

ADVICE_OUT_OF_MEMORY: Final = (
    "lower training.microBatchSize or dataset.maxLength, turn on training.activationCheckpointing, choose qlora,"
    " or ask for more memory in compute.resources or a larger compute.gpuClass"
)


class Statement(Model):
    """One statement about a resource. `lastTransitionTime` changes only when `status` does."""

    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """One word for machines."""
    message: Annotated[str, Field(max_length=4096)]
    """The cause and the next step, for people."""
    observed_generation: int
    """Generation of the spec that this speaks of."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When `status` last changed."""


class Condition(Statement):
    """One statement about a FineTuneJob."""

    type: ConditionType
    """What it is about."""
