"""The folder of base models that pods share: each is there whole, in a folder of its pin, or not at all."""

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from lorikeet_agent.serving.manifest import read_digest
from lorikeet_run import log

ABANDONED_SECONDS: Final = 86400.0
"""After which a fetch that has written nothing any more is taken for dead."""
_PARTIAL: Final = r"\.[0-9a-f]+-[0-9a-f]{8}"


def provide(cache: Path, pin: str, fetch: Callable[[Path], None]) -> None:
    """Have the model of `pin` in the cache, by calling `fetch` with an empty folder if it is not there.

    Any number of pods may do so at the same time. Raises OSError, and what `fetch` raises.
    """
    remove_abandoned(cache)
    target = cache / pin
    if is_complete(target):
        log.event("cached", folder=target)
        return
    partial = _sibling(target)
    try:
        partial.mkdir(parents=True)
        fetch(partial)
        _flush(partial)
        _put(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """Return whether a model's folder has all files that its digest names, in their sizes."""
    try:
        return all((folder / file.path).stat().st_size == file.size for file in read_digest(folder).files)
    except (OSError, ValueError):
        return False


def remove_abandoned(cache: Path) -> None:
    """Remove what pods have begun that are gone."""
    if not cache.is_dir():
        return
    for folder in cache.iterdir():
        if not re.fullmatch(_PARTIAL, folder.name):
            continue
        with suppress(OSError):  # its own pod may be about to move or remove it
            written = max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
            if time.time() - written > ABANDONED_SECONDS:
                shutil.rmtree(folder)


def _put(partial: Path, target: Path) -> None:
    """Move a whole model into place, unless another pod was faster."""
    while True:
        try:
            partial.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        if is_complete(target):
            return
        broken = _sibling(target)
        with suppress(FileNotFoundError):  # another pod has done so
            target.rename(broken)
        shutil.rmtree(broken, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Have files outlive a crash of the node: what is in the cache is not read again to be verified."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sibling(target: Path) -> Path:
    return target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
