"""The development cluster's API server, with our resources defined and no other operator at work."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from e2e.cluster.paths import CHECKOUT
from e2e.deploy import NAMESPACE, RELEASE
from e2e.target import Target, TargetError, development


def _definitions() -> list[dict[str, Any]]:
    """Return the CRDs, marked as Helm marks them, so that a later `make deploy` takes them over."""
    yaml = YAML(typ="safe", pure=True)
    found = []
    for path in sorted((CHECKOUT / "crds").glob("*.yaml")):
        body = yaml.load(path)
        body["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "Helm"}
        body["metadata"]["annotations"] = {
            "meta.helm.sh/release-name": RELEASE,
            "meta.helm.sh/release-namespace": NAMESPACE,
        }
        found.append(body)
    return found


@pytest.fixture(scope="session")
def server() -> Iterator[Target]:
    """The API server with our CRDs; an operator that is deployed rests meanwhile."""
    try:
        found = development()
    except TargetError as error:
        pytest.fail(str(error))
    crds = _definitions()
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": crds})
    found.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=listed)
    found.kubectl("wait", "--for=condition=Established", "crd", *[each["metadata"]["name"] for each in crds])
    deployed = found.kubectl("-n", NAMESPACE, "get", "deploy", RELEASE, "--ignore-not-found", "-o", "json")
    if deployed:
        found.kubectl("-n", NAMESPACE, "scale", "deploy", RELEASE, "--replicas=0")
        found.kubectl("-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=lorikeet")
    yield found
    if deployed:
        before = json.loads(deployed)["spec"]["replicas"]
        found.kubectl("-n", NAMESPACE, "scale", "deploy", RELEASE, f"--replicas={before}")


@pytest.fixture(autouse=True)
def _defined(server: Target) -> None:
    """Every test here needs the definitions."""
