"""Beside training, in a process of its own: uploads the newest checkpoint that the ranks have left.

Started by the supervisor, which closes our stdin when no more checkpoints come. Training never waits for it: where
the store is slow, checkpoints in between are left out.
"""

import argparse
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from lorikeet_run import log
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.patience import PUBLISH_SECONDS, patiently
from lorikeet_run.record import read_contract
from lorikeet_storage import Checkpoints, StorageError
from lorikeet_trainer.state import Layout, Prepared, StoredCheckpoint

_POLL_SECONDS: Final = 0.5
_NICENESS: Final = 10
"""Training goes first where both want the processor."""


class _Superseded(Exception):
    """A newer checkpoint is better worth the time that is left."""


@dataclass
class Uploader:
    """Uploads one checkpoint after the other, always the newest."""

    store: Checkpoints
    layout: Layout
    keep: int
    now: Callable[[], float] = time.monotonic
    deadline: float | None = None
    """When we are killed, once the run is asked to stop."""
    _sent: int = 0
    """Bytes of all uploads so far."""
    _seconds: float = 0.0
    """What they took, but for the one that is under way."""
    _began: float | None = None
    _left: int = 0
    """Bytes of the upload under way that are still to go."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hurry(self, seconds: float) -> None:
        """Know that only `seconds` are left: the last checkpoint counts more than the one that is under way."""
        self.deadline = self.now() + seconds

    def run(self, finished: Callable[[float], bool]) -> None:
        """Upload until `finished`, which waits so many seconds at most, says that no more come."""
        last = False
        while True:
            folder = self._take()
            if folder is not None:
                self._upload(folder)
            elif last:
                return
            else:
                last = finished(_POLL_SECONDS)

    def _waiting(self) -> list[Path]:
        """Return the checkpoints that the ranks have left, the newest last."""
        folders = [folder for folder in self.layout.checkpoints.glob("*") if folder.name.isdigit()]
        return sorted(folders, key=lambda folder: int(folder.name))

    def _take(self) -> Path | None:
        """Move the newest checkpoint to where nobody else touches it; those before it are worth nothing any more."""
        waiting = self._waiting()
        if not waiting:
            return None
        *older, newest = waiting
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)
        taken = self.layout.uploading / newest.name
        shutil.rmtree(self.layout.uploading, ignore_errors=True)
        self.layout.uploading.mkdir(parents=True)
        try:
            newest.rename(taken)
        except FileNotFoundError:
            return None  # a rank has replaced it just now
        return taken

    def _upload(self, folder: Path) -> None:
        step, size = int(folder.name), folder_size(folder)
        if not self._fits(size):
            log.event("checkpoint_left_out", step=step, bytes=size, message="it does not fit into the grace period")
            return
        self._began, self._left = self.now(), size
        try:
            patiently(lambda: self.store.save(folder, step, self._on_sent), PUBLISH_SECONDS)
            StoredCheckpoint(step=step).write(self.layout.stored)
            log.event("checkpoint_stored", step=step, bytes=size, seconds=round(self.now() - self._began, 3))
            self.store.prune(self.keep)
        except _Superseded:
            log.event("checkpoint_left_out", step=step, message="the run stops, and a newer one is there")
        except StorageError as error:
            log.event("checkpoint_failed", step=step, message=str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._seconds += self.now() - self._began
            self._began = None

    def _on_sent(self, sent: int) -> None:
        with self._lock:
            self._sent += sent
            self._left -= sent
        waiting = self._waiting() if self.deadline is not None else []
        if waiting and (self._fits(folder_size(waiting[-1])) or not self._fits(self._left)):
            raise _Superseded

    def _fits(self, size: int) -> bool:
        """Whether `size` bytes can be sent before the deadline, as fast as the store has taken others."""
        if self.deadline is None or not self._sent:
            return True
        so_far = self._seconds + (self.now() - self._began if self._began is not None else 0.0)
        return self.now() + size * so_far / self._sent <= self.deadline


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _wait_for_eof(seconds: float) -> bool:
    """Return whether stdin was closed within so many seconds."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def main() -> None:
    """Upload until the supervisor says that training has ended."""
    parser = argparse.ArgumentParser(prog="lorikeet_trainer.upload")
    parser.add_argument("--contract", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--grace", type=float, required=True, help="seconds from SIGTERM until we are killed")
    given = parser.parse_args()
    log.set_up()
    os.nice(_NICENESS)
    contract = read_contract(given.contract)
    keep = Hyperparameters.of(contract).checkpoints.keep
    layout = Layout(given.work)
    basis = Prepared.read(layout.prepared).basis(contract.date)
    uploader = Uploader(Checkpoints(contract, basis), layout, keep)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        del number, frame
        uploader.hurry(given.grace)

    signal.signal(signal.SIGTERM, on_sigterm)
    uploader.run(_wait_for_eof)


if __name__ == "__main__":
    main()
