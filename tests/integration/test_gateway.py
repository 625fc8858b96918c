"""The example of a gateway in front of a ModelDeployment is one that the Gateway API takes."""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.components import find_go
from e2e.cluster.paths import CHECKOUT
from e2e.target import Target

pytestmark = pytest.mark.integration

VERSION = "v1.4.0"
EXAMPLE = CHECKOUT / "examples" / "gateway" / "gateway.yaml"
CRDS = ("gateways", "httproutes")


@pytest.fixture(scope="module")
def gateway_api(server: Target) -> Iterator[Target]:
    """The API server with the Gateway API's definitions, out of its Go module; they go again with the test."""
    command = [str(find_go()), "mod", "download", "-json", f"sigs.k8s.io/gateway-api@{VERSION}"]
    told = subprocess.run(
        command, cwd="/", env={**os.environ, "GOFLAGS": "-mod=mod"}, capture_output=True, text=True, check=True
    )
    folder = Path(json.loads(told.stdout)["Dir"]) / "config" / "crd" / "standard"
    files = [folder / f"gateway.networking.k8s.io_{plural}.yaml" for plural in CRDS]
    before = server.kubectl("get", "crds", "-o", "name")
    mine = [file for file, plural in zip(files, CRDS, strict=True) if f"/{plural}.gateway" not in before]
    try:
        for file in mine:
            server.kubectl("create", "-f", str(file))
            established = '--for=jsonpath={.status.conditions[?(@.type=="Established")].status}=True'
            server.kubectl("wait", established, "-f", str(file), "--timeout=30s")
        yield server
    finally:
        for file in mine:
            server.kubectl("delete", "-f", str(file), "--wait=false", "--ignore-not-found")


def test_the_example_is_valid(gateway_api: Target) -> None:
    namespace = f"gateway-{secrets.token_hex(3)}"
    gateway_api.kubectl("create", "namespace", namespace)
    try:
        said = gateway_api.kubectl("-n", namespace, "apply", "--dry-run=server", "-f", str(EXAMPLE))
        assert said.count("created (server dry run)") == 2
        wrong = EXAMPLE.read_text(encoding="utf-8").replace("backendRefs", "backendReferences")
        refused = gateway_api.kubectl("-n", namespace, "apply", "--dry-run=server", "-f", "-", stdin=wrong, check=False)
        assert 'unknown field "spec.rules[0].backendReferences"' in refused
    finally:
        gateway_api.kubectl("delete", "namespace", namespace, "--wait=false")
