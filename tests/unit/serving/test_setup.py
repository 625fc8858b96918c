"""What profile, defaults and installation leave a ModelDeployment with."""

from typing import Any

import pytest

from lorikeet_api.request import Refused
from lorikeet_operator.serving.setup import Installation, Setup, settle
from tests.resources import deployment, profile

INSTALLED = Installation(agent="agent:test", vllm="vllm:test", router="router:test")


def settled(of_profile: dict[str, Any] | None = None, installed: Installation = INSTALLED, **spec: Any) -> Setup:
    return settle(deployment(**spec), profile(**(of_profile or {})), installed)


def test_a_short_request_gets_the_usual_pod() -> None:
    made = settled()
    assert made.compute.to_wire() == {
        "gpus": 1,
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}},
        "terminationGracePeriodSeconds": 300,
        "sharedMemory": "1Gi",
    }
    assert made.gpu_resource == "nvidia.com/gpu"
    assert (made.secret, made.ca, made.cache) == ("s3-credentials", None, None)
    assert made.storage.endpoint == "http://s3:7070"


def test_the_request_goes_before_the_profile_and_the_profile_before_the_defaults() -> None:
    by_profile = {"defaults": {"engineCompute": {"gpus": 2, "terminationGracePeriodSeconds": 600}}}
    made = settled(by_profile, compute={"gpus": 4})
    assert (made.compute.gpus, made.compute.termination_grace_period_seconds) == (4, 600)
    assert made.compute.shared_memory == "1Gi"


def test_what_the_profile_says_of_trainers_is_not_for_engines() -> None:
    assert settled({"defaults": {"compute": {"sharedMemory": "9Gi"}}}).compute.shared_memory == "1Gi"


@pytest.mark.parametrize(
    ("asked", "of_profile", "expected"),
    [(None, None, "vllm:test"), (None, "profile:1", "profile:1"), ("mine:1", "profile:1", "mine:1")],
)
def test_the_nearest_image_of_the_engine_is_taken(asked: str | None, of_profile: str | None, expected: str) -> None:
    engine = {"vllm": {"image": asked} if asked else {}}
    images = {"images": {"vllm": of_profile} if of_profile else {}}
    assert settled(images, engine=engine).engine_image == expected


def test_the_profiles_router_goes_before_the_installations() -> None:
    assert settled().router_image == "router:test"
    assert settled({"images": {"router": "envoy:1"}}).router_image == "envoy:1"


@pytest.mark.parametrize(
    ("installed", "where"),
    [
        (Installation("agent:test", "", "router:test"), "set images.vllm of the TuningProfile, or engine.image of"),
        (Installation("agent:test", "vllm:test", ""), "set images.router of the TuningProfile, or router.image of"),
        (Installation("", "vllm:test", "router:test"), "set agent.image of"),
    ],
    ids=["engine", "router", "agent"],
)
def test_an_image_that_nobody_knows_is_asked_for_where_it_can_be_set(installed: Installation, where: str) -> None:
    with pytest.raises(Refused, match=where) as refused:
        settled(installed=installed)
    assert refused.value.reason == "InvalidSpec"


CLASSES = [
    {
        "name": "a100",
        "resourceName": "nvidia.com/mig-1g.10gb",
        "nodeSelector": {"gpu": "a100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    }
]


def test_a_gpu_class_brings_its_resource_and_its_nodes() -> None:
    asked = {
        "gpuClass": "a100",
        "nodeSelector": {"zone": "b"},
        "tolerations": [{"key": "mine", "operator": "Exists"}],
    }
    made = settled({"gpuClasses": CLASSES}, compute=asked)
    assert made.gpu_resource == "nvidia.com/mig-1g.10gb"
    assert made.compute.node_selector == {"gpu": "a100", "zone": "b"}
    assert [each.key for each in made.compute.tolerations or []] == ["gpu", "mine"]


def test_an_unknown_gpu_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Refused, match=r"h100.*known: a100") as refused:
        settled({"gpuClasses": CLASSES}, compute={"gpuClass": "h100"})
    assert refused.value.reason == "GpuClassUnknown"


def test_who_serves_on_the_cpu_is_not_given_the_profiles_gpu_class() -> None:
    defaults = {"engineCompute": {"gpuClass": "a100"}}
    made = settled({"gpuClasses": CLASSES, "defaults": defaults}, compute={"gpus": 0})
    assert (made.compute.gpus, made.compute.gpu_class, made.compute.node_selector) == (0, None, None)


def test_who_names_a_gpu_class_gets_a_gpu_where_the_profile_has_pods_without() -> None:
    defaults = {"engineCompute": {"gpus": 0}}
    made = settled({"gpuClasses": CLASSES, "defaults": defaults}, compute={"gpuClass": "a100"})
    assert (made.compute.gpus, made.gpu_resource) == (1, "nvidia.com/mig-1g.10gb")


def test_who_serves_on_the_cpu_may_do_so_where_there_are_gpu_classes() -> None:
    made = settled({"gpuClasses": CLASSES}, compute={"gpus": 0})
    assert (made.compute.gpus, made.compute.node_selector, made.compute.tolerations) == (0, None, None)


def test_the_pods_identity_is_the_requests_or_the_profiles() -> None:
    storage = {"storage": {"serviceAccountName": "s3-reader"}}
    assert settled(storage).compute.service_account_name == "s3-reader"
    assert settled(storage, compute={"serviceAccountName": "mine"}).compute.service_account_name == "mine"


def test_credentials_authorities_and_cache_are_the_profiles() -> None:
    made = settled(
        {
            "storage": {"secretName": "keys", "caConfigMapName": "company-ca", "region": "eu-central-1"},
            "modelCache": {"persistentVolumeClaim": "models"},
        }
    )
    assert (made.secret, made.ca, made.cache, made.storage.region) == ("keys", "company-ca", "models", "eu-central-1")
