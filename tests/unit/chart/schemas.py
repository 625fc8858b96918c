"""Kubernetes' own OpenAPI documents as the JSON schemas that kubeconform reads; it would fetch them otherwise."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import components
from e2e.cluster.errors import ClusterError
from tests.unit.chart.helm import ROOT


def openapi_folder() -> Path:
    """Return the folder of OpenAPI v3 documents in the Go module from which the cluster is built, or skip."""
    try:
        command = [str(components.find_go()), "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]
    except ClusterError:
        pytest.skip("there is no Go here, and so no sources of Kubernetes")
    done = subprocess.run(
        command, cwd=ROOT / "e2e" / "cluster" / "kube", capture_output=True, text=True, timeout=60, check=True
    )
    folder = Path(done.stdout.strip() or "/nonexistent") / "api" / "openapi-spec" / "v3"
    if not folder.is_dir():
        pytest.skip("the sources of Kubernetes are not in Go's module cache: building the cluster's tools gets them")
    return folder


def write_schema(openapi: Path, target: Path, api_version: str, kind: str) -> None:
    """Write one kind's schema as `<group>/<kind>_<version>.json`, refusing fields that it does not know."""
    group, _, version = api_version.rpartition("/")
    name = f"apis__{group}__{version}" if group else f"api__{version}"
    document = json.loads((openapi / f"{name}_openapi.json").read_text(encoding="utf-8"))
    definitions = {name: _strict(schema) for name, schema in document["components"]["schemas"].items()}
    wanted = {"group": group, "version": version, "kind": kind}
    (found,) = (
        name for name, schema in definitions.items() if wanted in schema.get("x-kubernetes-group-version-kind", [])
    )
    schema = {"$ref": f"#/components/schemas/{found}", "components": {"schemas": definitions}}
    # kubeconform takes what is before the slash for the group, so that the core group is called v1.
    path = target / (group or version) / f"{kind.lower()}_{version}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(schema), encoding="utf-8")


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without room for other fields, if it lists its fields."""
    if "properties" not in schema or "additionalProperties" in schema:
        return schema
    return {**schema, "additionalProperties": False}
