"""Fills profile and defaults into a ModelDeployment (pure). Unlike a run's they are not pinned: a profile's change
reaches what is served, pod by pod."""

from dataclasses import dataclass
from typing import Final

from lorikeet_api.compute import EngineCompute, Resources
from lorikeet_api.contract import StorageAccess
from lorikeet_api.modeldeployment import ModelDeployment
from lorikeet_api.request import Refused
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.profiles import asked, gpu_class, placed

DRAIN_SECONDS: Final = 300
COMPUTE_DEFAULTS: Final = EngineCompute(
    gpus=1,
    resources=Resources(requests={"cpu": "1", "memory": "2Gi"}),
    termination_grace_period_seconds=DRAIN_SECONDS,
    shared_memory="1Gi",
)


@dataclass(frozen=True)
class Installation:
    """What the operator was installed with: images, and a word on the network."""

    agent: str
    vllm: str
    router: str
    network_policies: bool = True
    """Whether each ModelDeployment gets a NetworkPolicy for its engines."""


@dataclass(frozen=True)
class Setup:
    """All that the spec of a ModelDeployment leaves to its profile and to the installation."""

    compute: EngineCompute
    gpu_resource: str
    engine_image: str
    router_image: str
    agent_image: str
    storage: StorageAccess
    secret: str | None
    """Secret with the S3 credentials."""
    ca: str | None
    """ConfigMap with the authorities to trust."""
    cache: str | None
    """Claim in which base models are kept."""
    network_policies: bool
    """Whether there is to be a NetworkPolicy for the engines."""


def settle(deployment: ModelDeployment, profile: TuningProfile, installed: Installation) -> Setup:
    """Return the setup of a ModelDeployment. Raises Refused if request and profile do not fit together."""
    compute = asked(COMPUTE_DEFAULTS, profile.spec.defaults.engine_compute, deployment.spec.compute)
    of_class = gpu_class(compute, profile)
    of_profile = profile.spec.images
    storage = profile.spec.storage
    cache = profile.spec.model_cache
    return Setup(
        compute=placed(compute, of_class, profile),
        gpu_resource=of_class.resource_name,
        engine_image=_known(deployment.spec.engine.image or of_profile.vllm or installed.vllm, "engine", "vllm"),
        router_image=_known(of_profile.router or installed.router, "router", "router"),
        agent_image=_known(installed.agent, "agent", ""),
        storage=StorageAccess(endpoint=storage.endpoint, region=storage.region),
        secret=storage.secret_name,
        ca=storage.ca_config_map_name,
        cache=cache.persistent_volume_claim if cache is not None else None,
        network_policies=installed.network_policies,
    )


def _known(image: str, what: str, key: str) -> str:
    if not image:
        where = f"images.{key} of the TuningProfile, or " if key else ""
        raise Refused(
            "InvalidSpec", f"no image of the {what} is known: set {where}{what}.image of the operator's chart"
        )
    return image
