"""Taking a cluster down, whatever is left of it."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from e2e.cluster import cgroups, network
from e2e.cluster.errors import ClusterError
from e2e.cluster.paths import State
from e2e.cluster.process import ProcessRef, find_marked
from e2e.cluster.record import Record

DEADLINE_S = 20.0
MOUNTINFO = Path("/proc/self/mountinfo")


def running(state: State) -> list[ProcessRef]:
    """The cluster's own processes on the host: as recorded, or found by their mark where the record is gone."""
    record = Record.load(state)
    recorded = [p for p in record.processes if p.alive()] if record else []
    return recorded or find_marked(state.root)


def mounts_below(folder: Path, mountinfo: str) -> list[Path]:
    """Mount points below a folder, deepest first."""
    points = [Path(line.split()[4].replace("\\040", " ")) for line in mountinfo.splitlines()]
    return cgroups.deepest_first({p for p in points if p == folder or folder in p.parents})


def take_down(state: State) -> bool:
    """End the cluster's processes and remove what they used; True if there was anything.

    Only the namespace's first process is killed: with it the kernel ends all others, and their mounts and links
    go with the last of them.
    """
    processes = running(state)
    for process in processes:
        process.kill()
    _wait_until_ended(processes)
    had_link = network.remove_link(network.link_name(state.id))
    had_cgroup = _remove_cgroups(f"lorikeet-{state.id}")
    for mount in mounts_below(state.root, MOUNTINFO.read_text()):
        subprocess.run(["umount", "--lazy", str(mount)], capture_output=True)
    had_node = state.node.exists()
    for folder in (state.node, state.volumes, state.bin):
        remove_tree(folder)
    for file in (state.record, state.kubeconfig):
        file.unlink(missing_ok=True)
    return bool(processes or had_link or had_cgroup or had_node)


def remove_tree(folder: Path) -> None:
    """Delete a folder, unless something is still mounted in it: then deleting would reach too far."""
    if mounts := mounts_below(folder, MOUNTINFO.read_text()):
        raise ClusterError(
            f"{mounts[0]} is still mounted, so {folder} was not deleted.", f"Unmount it: umount {mounts[0]}"
        )
    shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ended(processes: list[ProcessRef]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while any(process.alive() for process in processes):
        if time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in processes if process.alive())
            raise ClusterError(
                f"Process {pids} does not end {DEADLINE_S:.0f} s after being killed.",
                "The kernel still waits for something, a disk for instance; run the same command again.",
            )
        time.sleep(0.02)


def _remove_cgroups(name: str) -> bool:
    """Remove them as soon as the last killed process has left them."""
    mountinfo = MOUNTINFO.read_text()
    there = any((root / name).exists() for root, _ in cgroups.hierarchies(mountinfo))
    deadline = time.monotonic() + DEADLINE_S
    while left := cgroups.remove(name, mountinfo):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"The cgroup {left[0]} could not be removed: something still runs in it.",
                f"Look at {left[0]}/cgroup.procs, end what is there, and run the same command again.",
            )
        time.sleep(0.05)
    return there
