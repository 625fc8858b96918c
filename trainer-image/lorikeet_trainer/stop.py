"""The request to stop, as a rank sees it: SIGTERM ends it at once, but for the steps, of which each is made whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from lorikeet_api.contract import EXIT_PREEMPTED


class Stop:
    """Whether this process was asked to stop. A process has one, as it has one table of signal handlers: `STOP`."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def listen(self) -> None:
        """Take SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._on_sigterm)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block look at `requested` itself, where it can end without losing what it has done."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        if not self._deferred:
            raise SystemExit(EXIT_PREEMPTED)


STOP: Final = Stop()
