"""Processes that are named so that a recycled number is never mistaken for them."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MARK = "LORIKEET_NODE"
"""An environment variable of the namespace's first process: its value is the cluster's state folder."""


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name is in brackets and may hold spaces and brackets itself: split after the last one.
    return text[text.rindex(")") + 2 :].split()


@dataclass(frozen=True)
class ProcessRef:
    """A process: its number, when it started, and in which boot of the machine."""

    pid: int
    start: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessRef | None:
        """The process that has this number now, if any."""
        fields = _stat(pid)
        return cls(pid, int(fields[19]), BOOT_ID.read_text().strip()) if fields else None

    def alive(self) -> bool:
        """True while this very process runs; false for a zombie and for another one under its number."""
        fields = _stat(self.pid)
        return (
            fields is not None
            and int(fields[19]) == self.start
            and fields[0] not in ("Z", "X")
            and BOOT_ID.read_text().strip() == self.boot
        )

    def kill(self) -> None:
        """SIGKILL this very process; nothing if it has ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # The handle pins the process, so checking and killing are about the same one.
            if self.alive():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


def children(pid: int) -> list[int]:
    """The numbers of a process's children."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def find_marked(state_root: Path) -> list[ProcessRef]:
    """First processes of namespaces that were started for this state folder, found without any record.

    They carry the folder in their environment; only those that are number 1 in a namespace of their own count.
    """
    wanted = f"{MARK}={state_root}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            status = (entry / "status").read_text()
        except OSError:  # it ended meanwhile
            continue
        numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        if len(numbers) > 1 and numbers[-1] == "1":
            ref = ProcessRef.of(int(entry.name))
            if ref is not None and ref.alive():
                found.append(ref)
    return found
