"""Fills profile and defaults into a request, once, before its first pod (pure)."""

from typing import Final

from lorikeet_api.compute import Compute, Resources
from lorikeet_api.contract import RunContract, StorageAccess, run_id
from lorikeet_api.defaults import DEFAULTS, unusual
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_api.training import Method, Training
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.finetune.start import beginning
from lorikeet_operator.profiles import Refused, asked, gpu_class, overlay, placed

LARGEST_AUTOMATIC_MICRO_BATCH: Final = 4
GRACE_PERIOD_SECONDS: Final = 120
COMPUTE_DEFAULTS: Final = Compute(
    gpus=1,
    resources=Resources(requests={"cpu": "1", "memory": "2Gi"}),
    termination_grace_period_seconds=GRACE_PERIOD_SECONDS,
    shared_memory="1Gi",
)


def resolve(
    job: FineTuneJob, profile: TuningProfile, trainer_image: str, earlier: FineTuneJob | None = None
) -> Resolved:
    """Return the request with everything decided.

    Args:
        job: the request.
        profile: the TuningProfile that it names.
        trainer_image: image of trainers where neither job nor profile name one.
        earlier: the FineTuneJob that it goes on from, if it does and there is one.

    Raises:
        Refused: if profile and request do not fit together, or what it goes on from is not there.
    """
    spec = job.spec
    storage = profile.spec.storage
    begin = beginning(job, earlier, storage.endpoint)
    training = _training(job, begin.method, profile)
    compute = asked(COMPUTE_DEFAULTS, profile.spec.defaults.compute, spec.compute)
    of_class = gpu_class(compute, profile)
    compute = placed(compute, of_class, profile)
    image = compute.image or profile.spec.images.trainer or trainer_image
    if not image:
        raise Refused(
            "InvalidSpec",
            "no trainer image is known: set compute.image, images.trainer of the TuningProfile, or trainer.image of the"
            " operator's chart",
        )
    return Resolved(
        profile=profile.metadata.name,
        profile_generation=profile.metadata.generation,
        contract=RunContract(
            namespace=job.metadata.namespace or "",
            name=job.metadata.name,
            run_id=run_id(begin.model, spec.dataset, begin.method, spec.objective, training, begin.start),
            model=begin.model,
            start=begin.start,
            dataset=spec.dataset,
            method=begin.method,
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
        gpu_resource=of_class.resource_name,
        secret_name=storage.secret_name,
        ca_config_map_name=storage.ca_config_map_name,
        warnings=unusual(begin.method, spec.objective.name, training),
    )


def _training(job: FineTuneJob, method: Method, profile: TuningProfile) -> Training:
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
    if training.micro_batch_size is None and training.batch_size is not None:
        micro = largest_divisor(training.batch_size, LARGEST_AUTOMATIC_MICRO_BATCH)
        training = training.model_copy(update={"micro_batch_size": micro})
    return training


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` that is not above `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _output_uri(job: FineTuneJob, profile: TuningProfile) -> str:
    if job.spec.output is not None:
        return job.spec.output.uri.rstrip("/")
    if profile.spec.storage.uri is None:
        raise Refused(
            "OutputUnknown",
            f"neither the job's output.uri nor storage.uri of TuningProfile {profile.metadata.name!r} is set: set one",
        )
    return f"{profile.spec.storage.uri.rstrip('/')}/{job.metadata.namespace}/{job.metadata.name}"
