"""The file that says which adapters the engine is to hold: a mounted ConfigMap, exchanged at any time."""

import logging
from pathlib import Path

from lorikeet_api.serving import AdapterRevision, WantedAdapters
from lorikeet_run import log


class WantedFile:
    """The last good content of the file; what is wrong with a later one is said once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None
        self._error = ""
        self.fingerprint = ""
        """Of the adapters; empty: none yet."""
        self.adapters: tuple[AdapterRevision, ...] = ()
        self.led: frozenset[str] = frozenset()
        """Served names of the adapters that requests are led to."""

    def changed(self) -> bool:
        """Read the file again and return whether something else is wanted now."""
        try:
            content = self._path.read_bytes()
            if content == self._content:
                return False
            self._content = content
            wanted = WantedAdapters.model_validate_json(content)
        except (OSError, ValueError) as error:
            if str(error) != self._error:
                log.event("wanted_unreadable", logging.ERROR, file=self._path, message=error)
            self._error = str(error)
            return False
        self._error = ""
        self.fingerprint, self.adapters, self.led = wanted.fingerprint, tuple(wanted.adapters), frozenset(wanted.led)
        log.event("wanted", fingerprint=self.fingerprint, adapters=len(self.adapters))
        return True
