"""Fills profile and defaults into what a job asks for (pure): operator and `lorikeet run` make the same of it."""

from dataclasses import dataclass
from typing import Any, Final, TypeVar

from lorikeet_api.base import Model
from lorikeet_api.batch import is_tried, micro_batch
from lorikeet_api.compute import Compute
from lorikeet_api.conditions import OperatorReason
from lorikeet_api.contract import RunContract, Start, StorageAccess, ranks_of, run_id
from lorikeet_api.defaults import DEFAULTS
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.objectives import Objective, unmeasured, unshared
from lorikeet_api.tracking import Tracking
from lorikeet_api.training import Dataset, Method, ModelSource, QLora, Training
from lorikeet_api.tuningprofile import TuningProfile

GRACE_PERIOD_SECONDS: Final = 120

USUAL: Final = Method(qlora=QLora())
"""How a job trains that does not say how."""

M = TypeVar("M", bound=Model)


class Refused(Exception):
    """The request cannot be run as it stands; `reason` and `message` become a condition."""

    def __init__(self, reason: OperatorReason, message: str) -> None:
        super().__init__(message)
        self.reason: OperatorReason = reason
        self.message = message


@dataclass(frozen=True)
class Beginning:
    """What a run begins with, decided."""

    model: ModelSource
    """The base model."""
    method: Method
    objective: Objective
    """What is optimised; reward models by where they lie."""
    start: Start | None = None
    """The adapter that is trained further."""


def overlay(*layers: M) -> M:
    """Return the layers merged field by field; a later layer's present fields win, whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update({name: value for name in type(layer).model_fields if (value := getattr(layer, name)) is not None})
    return type(layers[0])(**merged)


def contract(job: FineTuneJob, profile: TuningProfile, compute: Compute, begin: Beginning) -> RunContract:
    """Return what the trainer is told of a job; `compute` is what its pod asks for. Raises Refused."""
    storage = profile.spec.storage
    gpus = compute.gpus or 0
    training = hyperparameters(job, begin.method, profile, gpus)
    dataset = _dataset(job, profile)
    if (why := unmeasured(dataset, training)) is not None:
        raise Refused("InvalidSpec", why)
    return RunContract(
        namespace=job.metadata.namespace or "",
        name=job.metadata.name,
        run_id=run_id(begin.model, dataset, begin.method, begin.objective, training, begin.start),
        model=begin.model,
        start=begin.start,
        dataset=dataset,
        method=begin.method,
        objective=begin.objective,
        training=training,
        output_uri=_output_uri(job, profile),
        storage=StorageAccess(endpoint=storage.endpoint, region=storage.region),
        gpus=gpus,
        allow_cpu=profile.spec.allow_cpu_fallback,
        grace_period_seconds=compute.termination_grace_period_seconds or GRACE_PERIOD_SECONDS,
        job_uid=job.metadata.uid,
        tracking=_tracking(job, profile),
        date=(job.metadata.creation_timestamp or "")[:10],
    )


def _dataset(job: FineTuneJob, profile: TuningProfile) -> Dataset:
    """Return the job's data, with the profile's general set where it names none and its objective can have one."""
    dataset, usual = job.spec.dataset, profile.spec.defaults.general
    if dataset.general is not None or usual is None or job.spec.objective.reward is not None:
        return dataset
    return dataset.model_copy(update={"general": usual})


def _tracking(job: FineTuneJob, profile: TuningProfile) -> Tracking | None:
    """Return the trackers of the job, else those of the profile; None where there are none."""
    asked = job.spec.tracking if job.spec.tracking is not None else profile.spec.defaults.tracking
    return asked if asked is not None and asked.names else None


def hyperparameters(job: FineTuneJob, method: Method, profile: TuningProfile, gpus: int) -> Training:
    """Return the job's hyperparameters, each absent one from the profile, else from the table.

    The micro batch is chosen for as many `gpus` as train together, and left open where the run is to find it by trying.
    Raises Refused.
    """
    spec = job.spec
    layers = (DEFAULTS[method.name, spec.objective.name], profile.spec.defaults.training, spec.training)
    try:
        training = overlay(*layers)
    except ValueError as error:
        raise Refused(
            "InvalidSpec",
            f"training and the defaults of TuningProfile {profile.metadata.name!r} do not fit together:"
            f" {error.errors()[0]['msg'] if hasattr(error, 'errors') else error};"
            " set both training.batchSize and training.microBatchSize",
        ) from error
    if training.early_stopping is not None and training.early_stopping.patience == 0:
        training = training.model_copy(update={"early_stopping": None})  # the job's word against the profile's
    if spec.dataset.eval is None and spec.dataset.eval_fraction is None:
        training = training.without_evaluation()  # the profile's; a job's own would have been refused
    if (why := unshared(spec.objective, training.batch_size)) is not None:
        raise Refused("InvalidSpec", f"{why} (it is {training.batch_size})")
    assert training.batch_size is not None  # noqa: S101 - the table has one
    try:
        micro = micro_batch(training.batch_size, ranks_of(gpus), training.micro_batch_size)
    except ValueError as error:
        raise Refused("InvalidSpec", f"training: {error}") from error
    if is_tried(spec.objective, training.precision, gpus):
        return training
    return training.model_copy(update={"micro_batch_size": micro})


def _output_uri(job: FineTuneJob, profile: TuningProfile) -> str:
    if job.spec.output is not None:
        return job.spec.output.uri.rstrip("/")
    if profile.spec.storage.uri is None:
        raise Refused(
            "OutputUnknown",
            f"neither the job's output.uri nor storage.uri of TuningProfile {profile.metadata.name!r} is set: set one",
        )
    return f"{profile.spec.storage.uri.rstrip('/')}/{job.metadata.namespace}/{job.metadata.name}"
