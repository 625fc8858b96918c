"""Waiting for a store that is away for a while: its client gives up within a second, a training run must not."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from lorikeet_run import log
from lorikeet_storage.errors import StorageError

T = TypeVar("T")

FETCH_SECONDS: Final = 60.0
"""Before training little is lost: the pod may as well be made again."""
PUBLISH_SECONDS: Final = 600.0
"""After it, everything would be."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 15.0


def patiently(
    call: Callable[[], T],
    seconds: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> T:
    """Return what `call` returns, called again with growing pauses for up to `seconds` after its first failure.

    Raises StorageError as `call` does: at once if waiting cannot help, else the last one.
    """
    deadline: float | None = None
    pause = _FIRST_PAUSE
    while True:
        try:
            return call()
        except StorageError as error:
            deadline = deadline or now() + seconds
            if not error.retryable or now() + pause > deadline:
                raise
            log.event("wait", message=str(error), seconds=pause)
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
