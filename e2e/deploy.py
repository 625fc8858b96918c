"""Installs or upgrades Lorikeet by its Helm chart (`make deploy`)."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from e2e.cluster.paths import CHECKOUT
from e2e.target import Target, TargetError, target
from e2e.workspace import profile, refuse_others_profile

NAMESPACE = "lorikeet-system"
RELEASE = "lorikeet"
CHART = CHECKOUT / "charts" / "lorikeet"


def image_values(reference: str) -> dict[str, str]:
    """Return a chart's image values for an image reference with a tag or a digest."""
    if "@" in reference:
        repository, digest = reference.split("@", 1)
        return {"repository": repository, "digest": digest}
    path, slash, name = reference.rpartition("/")
    name, _, tag = name.partition(":")
    return {"repository": path + slash + name, "tag": tag or "latest"}


def values(found: Target) -> dict[str, Any]:
    """Return the chart's values for a cluster."""
    return {
        "image": image_values(found.operator_image),
        "agent": {"image": image_values(found.agent_image)},
        "trainer": {"image": image_values(found.trainer_image)},
        "engine": {"image": image_values(found.engine_image)},
        "router": {"image": image_values(found.router_image)},
    }


def deploy(found: Target) -> float:
    """Install or upgrade the release, wait until the operator is ready, and return the seconds it took."""
    images = (found.operator_image, found.agent_image, found.trainer_image, found.engine_image, found.router_image)
    if not all(images):
        raise TargetError("the images are not built: run `make images`")
    began = time.monotonic()
    found.helm(
        *("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace"),
        *(word for name, value in values(found).items() for word in ("--set-json", f"{name}={json.dumps(value)}")),
        *("--wait", "--timeout", "5m"),
    )
    return time.monotonic() - began


def install(found: Target) -> None:
    """Install the release and the TuningProfile of demo and scenarios. Raises TargetError where that one is taken."""
    refuse_others_profile(found)
    deploy(found)
    found.apply([profile(found)])


def main() -> int:
    """Deploy to the cluster that the environment names."""
    try:
        seconds = deploy(target())
    except TargetError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(f"Lorikeet runs in namespace {NAMESPACE} ({seconds:.0f} s).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
