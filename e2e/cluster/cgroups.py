"""The cluster's own cgroup, one in every hierarchy: made for the kubelet, removed deepest first."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

# Without these a cgroup v1 cpuset takes no process.
_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


def hierarchies(mountinfo: str) -> list[tuple[Path, bool]]:
    """The cgroup hierarchies in /proc/self/mountinfo, each with True if it is version 2."""
    found: list[tuple[Path, bool]] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind = after.split(" ", 1)[0]
        if kind in ("cgroup", "cgroup2"):
            path = Path(before.split()[4].replace("\\040", " "))
            if (path, kind == "cgroup2") not in found:
                found.append((path, kind == "cgroup2"))
    return found


def deepest_first(paths: Iterable[Path]) -> list[Path]:
    """An order in which each folder comes before the folder that holds it."""
    return sorted(paths, key=lambda path: (-len(path.parts), str(path)))


def create(name: str, mountinfo: str) -> None:
    """Make the cgroup ``name`` in every hierarchy, ready to take processes."""
    for root, unified in hierarchies(mountinfo):
        group = root / name
        if unified:
            _delegate(root)
        group.mkdir(exist_ok=True)
        if unified:
            _delegate(group)
        for file in _CPUSET_FILES:
            if not unified and (group / file).exists() and not (group / file).read_text().strip():
                (group / file).write_text((root / file).read_text())


def _delegate(group: Path) -> None:
    """Hand every controller of a version 2 group down to its children, as far as the host allows it."""
    for controller in (group / "cgroup.controllers").read_text().split():
        try:
            (group / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError:  # a hybrid host has no controller there, a container may not hand this one on
            continue


def remove(name: str, mountinfo: str) -> list[Path]:
    """Remove the cgroup ``name`` from every hierarchy; returns what could not be removed."""
    left: list[Path] = []
    for root, _ in hierarchies(mountinfo):
        top = root / name
        groups = [Path(folder) for folder, _, _ in os.walk(top)]
        for group in deepest_first(groups):
            try:
                group.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # still has a process: the caller tries again until its deadline
                left.append(group)
    return left
