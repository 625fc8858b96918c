"""Processes of pods as the development cluster's machine sees them: to be killed, stopped, cut off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

on_the_node = pytest.mark.skipif(
    os.environ.get("CLUSTER") == "existing" or os.geteuid() != 0, reason="needs the node's processes"
)


def process_of(pod: dict[str, Any], program: bytes) -> int:
    """Return the oldest process of a program in a pod, as this machine numbers it."""
    uid = pod["metadata"]["uid"]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if uid in (entry / "cgroup").read_text() and program in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    if not found:
        raise AssertionError(f"no process {program!r} of pod {pod['metadata']['name']} here")
    return min(found)
