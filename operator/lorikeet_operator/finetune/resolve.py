"""Fills profile and defaults into a request, once, before its first pod (pure)."""

from typing import Final

from lorikeet_api.compute import Compute, Resources
from lorikeet_api.defaults import unusual
from lorikeet_api.finetunejob import FineTuneJob, Resolved
from lorikeet_api.request import GRACE_PERIOD_SECONDS, Refused, contract
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.finetune.start import beginning
from lorikeet_operator.profiles import asked, gpu_class, placed

COMPUTE_DEFAULTS: Final = Compute(
    gpus=1,
    resources=Resources(requests={"cpu": "1", "memory": "2Gi"}),
    termination_grace_period_seconds=GRACE_PERIOD_SECONDS,
    shared_memory="1Gi",
)


def resolve(job: FineTuneJob, profile: TuningProfile, trainer_image: str, *earlier: FineTuneJob) -> Resolved:
    """Return the request with everything decided.

    Args:
        job: the request.
        profile: the TuningProfile that it names.
        trainer_image: image of trainers where neither job nor profile name one.
        earlier: those FineTuneJobs that it is made of (`FineTuneJobSpec.earlier`) which there are.

    Raises:
        Refused: if profile and request do not fit together, or what it is made of is not there.
    """
    spec = job.spec
    storage = profile.spec.storage
    begin = beginning(job, {each.metadata.name: each for each in earlier}, storage.endpoint)
    compute = asked(COMPUTE_DEFAULTS, profile.spec.defaults.compute, spec.compute)
    told = contract(job, profile, compute, begin)
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
        contract=told,
        compute=compute,
        image=image,
        gpu_resource=of_class.resource_name,
        secret_name=storage.secret_name,
        ca_config_map_name=storage.ca_config_map_name,
        warnings=unusual(begin.method, spec.objective.name, told.training),
    )
