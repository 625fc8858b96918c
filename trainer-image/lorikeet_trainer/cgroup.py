"""What the container's cgroup says: processes killed for memory, and the CPU quota. Versions 1 and 2.

Files: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.events, cpu.max) and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html (memory.oom_control), sched-bwc (cpu.cfs_*).
"""

import math
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def _paths(controller: str) -> list[str]:
    """Return this process's paths in the hierarchies of `controller`: version 1 first, version 2 as "".

    In a container with a cgroup namespace the path is "/"; without one it is the host's, which is not
    mounted in the container, so the hierarchy's root is tried too.
    """
    found = []
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            found.append(f"{controller}{path}")
        elif controllers == "":
            found.append(path.lstrip("/"))
    return [*found, controller, "."]


def _read(controller: str, name: str) -> str | None:
    for path in _paths(controller):
        try:
            return (ROOT / path / name).read_text()
        except OSError:
            continue
    return None


def oom_kills() -> int | None:
    """Return how many processes of this cgroup were killed for memory; None if nothing tells."""
    for name in ("memory.oom_control", "memory.events"):
        for line in (_read("memory", name) or "").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


def _quota() -> float | None:
    version_2 = (_read("cpu", "cpu.max") or "").split()
    if len(version_2) == 2 and version_2[0] != "max":
        return int(version_2[0]) / int(version_2[1])
    quota, period = _read("cpu", "cpu.cfs_quota_us"), _read("cpu", "cpu.cfs_period_us")
    if quota is not None and period is not None and int(quota) > 0:
        return int(quota) / int(period)
    return None


def cpus() -> int:
    """Return the CPUs that this process may use: its quota rounded up, at most those it is bound to.

    Libraries ask for the host's cores instead, and many threads on a small quota are throttled all the time.
    """
    bound = len(os.sched_getaffinity(0))
    quota = _quota()
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))
