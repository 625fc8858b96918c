"""Fills profile and defaults into a request, once, before its first pod (pure)."""

from typing import Any, Final, TypeVar

from lorikeet_api.base import Model
from lorikeet_api.compute import Compute, GpuClass, Resources
from lorikeet_api.conditions import OperatorReason
from lorikeet_api.contract import RunContract, StorageAccess, run_id
from lorikeet_api.defaults import DEFAULTS, unusual
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_api.training import Training
from lorikeet_api.tuningprofile import TuningProfile

LARGEST_AUTOMATIC_MICRO_BATCH: Final = 4
GRACE_PERIOD_SECONDS: Final = 120
COMPUTE_DEFAULTS: Final = Compute(
    gpus=1,
    resources=Resources(requests={"cpu": "1", "memory": "2Gi"}),
    termination_grace_period_seconds=GRACE_PERIOD_SECONDS,
    shared_memory="1Gi",
)


M = TypeVar("M", bound=Model)


class Refused(Exception):
    """The request cannot be run as it stands; `reason` and `message` become the condition Validated=False."""

    def __init__(self, reason: OperatorReason, message: str) -> None:
        super().__init__(message)
        self.reason: OperatorReason = reason
        self.message = message


def overlay(*layers: M) -> M:
    """Return the layers merged field by field; a later layer's present fields win, whole."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update({name: value for name in type(layer).model_fields if (value := getattr(layer, name)) is not None})
    return type(layers[0])(**merged)


def resolve(job: FineTuneJob, profile: TuningProfile, trainer_image: str) -> Resolved:
    """Return the request with everything decided.

    Args:
        job: the request.
        profile: the TuningProfile that it names.
        trainer_image: image of trainers where neither job nor profile name one.

    Raises:
        Refused: if profile and request do not fit together.
    """
    spec = job.spec
    training = _training(job, profile)
    compute = overlay(COMPUTE_DEFAULTS, profile.spec.defaults.compute, spec.compute)
    gpu_class = _gpu_class(compute, profile)
    compute = _placed(compute, gpu_class, profile)
    image = compute.image or profile.spec.images.trainer or trainer_image
    if not image:
        raise Refused(
            "InvalidSpec",
            "no trainer image is known: set compute.image, images.trainer of the TuningProfile, or trainer.image of the"
            " operator's chart",
        )
    storage = profile.spec.storage
    return Resolved(
        profile=profile.metadata.name,
        profile_generation=profile.metadata.generation,
        contract=RunContract(
            namespace=job.metadata.namespace or "",
            name=job.metadata.name,
            run_id=run_id(spec.model, spec.dataset, spec.method, spec.objective, training),
            model=spec.model,
            dataset=spec.dataset,
            method=spec.method,
            objective=spec.objective,
            training=training,
            output_uri=_output_uri(job, profile),
            storage=StorageAccess(endpoint=storage.endpoint, region=storage.region),
            gpus=compute.gpus or 0,
            allow_cpu=profile.spec.allow_cpu_fallback,
            grace_period_seconds=compute.termination_grace_period_seconds or GRACE_PERIOD_SECONDS,
            job_uid=job.metadata.uid,
            date=(job.metadata.creation_timestamp or "")[:10],
        ),
        compute=compute,
        image=image,
        gpu_resource=gpu_class.resource_name,
        secret_name=storage.secret_name,
        ca_config_map_name=storage.ca_config_map_name,
        warnings=unusual(spec.method, spec.objective.name, training),
    )


def _training(job: FineTuneJob, profile: TuningProfile) -> Training:
    spec = job.spec
    layers = (DEFAULTS[spec.method.name, spec.objective.name], profile.spec.defaults.training, spec.training)
    try:
        training = overlay(*layers)
    except ValueError as error:
        raise Refused(
            "InvalidSpec",
            f"training and the defaults of TuningProfile {profile.metadata.name!r} do not fit together:"
            f" {error.errors()[0]['msg'] if hasattr(error, 'errors') else error};"
            " set both training.batchSize and training.microBatchSize",
        ) from error
    if training.micro_batch_size is None and training.batch_size is not None:
        micro = largest_divisor(training.batch_size, LARGEST_AUTOMATIC_MICRO_BATCH)
        training = training.model_copy(update={"micro_batch_size": micro})
    return training


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is not above `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _gpu_class(compute: Compute, profile: TuningProfile) -> GpuClass:
    if compute.gpu_class is None:
        return GpuClass(name="default")
    classes = {gpu_class.name: gpu_class for gpu_class in profile.spec.gpu_classes}
    if compute.gpu_class not in classes:
        known = ", ".join(sorted(classes)) or "none"
        raise Refused(
            "GpuClassUnknown",
            f"compute.gpuClass {compute.gpu_class!r} is not in TuningProfile {profile.metadata.name!r}"
            f" (known: {known}): create the job with one of these, or have the class added to the profile",
        )
    return classes[compute.gpu_class]


def _placed(compute: Compute, gpu_class: GpuClass, profile: TuningProfile) -> Compute:
    """Return `compute` with the GPU class's placement and the profile's identity filled in."""
    on_gpu = compute.gpus != 0
    selector = {**(gpu_class.node_selector or {} if on_gpu else {}), **(compute.node_selector or {})}
    tolerations = [*(gpu_class.tolerations or [] if on_gpu else []), *(compute.tolerations or [])]
    return compute.model_copy(
        update={
            "node_selector": selector or None,
            "tolerations": tolerations or None,
            "service_account_name": compute.service_account_name or profile.spec.storage.service_account_name,
        }
    )


def _output_uri(job: FineTuneJob, profile: TuningProfile) -> str:
    if job.spec.output is not None:
        return job.spec.output.uri.rstrip("/")
    if profile.spec.storage.uri is None:
        raise Refused(
            "OutputUnknown",
            f"neither the job's output.uri nor storage.uri of TuningProfile {profile.metadata.name!r} is set: set one",
        )
    return f"{profile.spec.storage.uri.rstrip('/')}/{job.metadata.namespace}/{job.metadata.name}"
