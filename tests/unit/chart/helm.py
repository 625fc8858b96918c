"""The chart as `helm` renders it, for the tests of this folder and those against the API server."""

import json
import re
import subprocess
from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from ruamel.yaml import YAML

from e2e.cluster import components
from e2e.cluster.errors import ClusterError

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "lorikeet"
RELEASE = "lorikeet"
NAMESPACE = "lorikeet-system"
KUBE_VERSION = components.KUBERNETES_VERSION.removeprefix("v")


@cache
def tool(name: str) -> str:
    """Return the path of a pinned tool of the development cluster, else of the machine's; skip if there is none.

    Never builds one: that takes minutes.
    """
    try:
        pinned = components.binary(components.BY_NAME[name], components.go_version(components.find_go()))
    except ClusterError:
        pinned = None
    if pinned is not None and pinned.exists():
        return str(pinned)
    found = which(name)
    if found is None:
        pytest.skip(f"there is no {name} here: the development cluster's tools have it")
    return found


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; a failure shows what it said."""
    done = subprocess.run(list(command), capture_output=True, text=True, timeout=120, **options)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def template(
    values: dict[str, Any] | None = None, *, chart: Path = CHART, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run `helm template` with these values, over the chart's own."""
    command = [tool("helm"), "template", RELEASE, str(chart), "--namespace", NAMESPACE, "--kube-version", KUBE_VERSION]
    return run(*command, "--values", "-", check=check, input=json.dumps(values or {}))


def render(values: dict[str, Any] | None = None, *, chart: Path = CHART) -> str:
    """Return what `helm template` writes."""
    return template(values, chart=chart).stdout


def documents(text: str) -> list[dict[str, Any]]:
    """Return the objects in rendered YAML."""
    return [deepcopy(each) for part in re.split("^---$", text, flags=re.MULTILINE) if (each := _document(part))]


@cache  # what values do not change, as the long definitions, is read once
def _document(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def objects(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rendered objects."""
    return documents(render(values))


def of_kind(rendered: Iterable[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    """Return the objects of some kinds."""
    return [each for each in rendered if each["kind"] in kinds]
