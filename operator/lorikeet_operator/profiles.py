"""Fills a TuningProfile's values into what a resource says of its pods (pure)."""

from typing import TypeVar

from lorikeet_api.compute import GpuClass, PodSettings
from lorikeet_api.request import Refused, overlay
from lorikeet_api.tuningprofile import TuningProfile

P = TypeVar("P", bound=PodSettings)


def asked(usual: P, of_profile: P, of_request: P) -> P:
    """Return what a pod asks for: the request's word goes before the profile's, and that before what is usual.

    GPUs and their class are one word: who asks for no GPU is not given the profile's class, nor who names a class the
    profile's `gpus: 0`.
    """
    if of_request.gpus == 0:
        of_profile = of_profile.model_copy(update={"gpu_class": None})
    if of_request.gpu_class is not None and of_profile.gpus == 0:
        of_profile = of_profile.model_copy(update={"gpus": None})
    return overlay(usual, of_profile, of_request)


def gpu_class(settings: PodSettings, profile: TuningProfile) -> GpuClass:
    """Return the GPU class that the settings name, or the usual one. Raises Refused."""
    if settings.gpu_class is None:
        return GpuClass(name="default")
    classes = {each.name: each for each in profile.spec.gpu_classes}
    if settings.gpu_class not in classes:
        known = ", ".join(sorted(classes)) or "none"
        raise Refused(
            "GpuClassUnknown",
            f"compute.gpuClass {settings.gpu_class!r} is not in TuningProfile {profile.metadata.name!r}"
            f" (known: {known}): create it with one of these, or have the class added to the profile",
        )
    return classes[settings.gpu_class]


def placed(settings: P, of_class: GpuClass, profile: TuningProfile) -> P:
    """Return `settings` with the GPU class's placement and the profile's identity filled in."""
    on_gpu = settings.gpus != 0
    selector = {**(of_class.node_selector or {} if on_gpu else {}), **(settings.node_selector or {})}
    tolerations = [*(of_class.tolerations or [] if on_gpu else []), *(settings.tolerations or [])]
    return settings.model_copy(
        update={
            "node_selector": selector or None,
            "tolerations": tolerations or None,
            "service_account_name": settings.service_account_name or profile.spec.storage.service_account_name,
        }
    )
