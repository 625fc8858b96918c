"""The adapters on disk, each in a folder of its served name, in which nothing is that was not verified."""

import hashlib
import shutil
import uuid
from pathlib import Path

from lorikeet_agent.serving.manifest import check_fit
from lorikeet_agent.serving.settings import DIGEST, Settings
from lorikeet_api.contract import FileDigest
from lorikeet_api.serving import AdapterRevision
from lorikeet_run import log
from lorikeet_storage.adapter import Flaw, parse_adapter, read_adapter
from lorikeet_storage.s3 import S3
from lorikeet_storage.sources import file_digest


class AdapterFiles:
    """The folder of all adapters. Other threads may call for other adapters meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._contract = settings.contract
        self._model = settings.model
        self._root = settings.adapters
        self._verified: dict[str, AdapterRevision] = {}

    def folder(self, served: str) -> Path:
        """Return where an adapter's files are, or would be."""
        return self._root / served

    def names(self) -> frozenset[str]:
        """Return the served names of the adapters on disk, whatever their state."""
        return frozenset(_entries(self._root, hidden=False))

    def size(self, served: str) -> int:
        """Return the bytes of an adapter's files; 0 if they are not there."""
        folder = self.folder(served)
        return sum((folder / name).stat().st_size for name in _entries(folder, hidden=False))

    def ensure(self, revision: AdapterRevision) -> None:
        """Have an adapter on disk, verified in this process' life. Raises AdapterError, StorageError and OSError."""
        if self._verified.get(revision.served) == revision and self.folder(revision.served).is_dir():
            return
        if not self._is_sound(revision):
            self.remove(revision.served)
            self._fetch(revision)
        self._verified[revision.served] = revision

    def remove(self, served: str) -> None:
        """Remove an adapter's files, if they are there. Raises OSError."""
        self._verified.pop(served, None)
        if self.folder(served).exists():
            shutil.rmtree(self.folder(served))

    def remove_abandoned(self) -> None:
        """Remove what a process that ended in the middle has left. To be called before any other method."""
        self._root.mkdir(parents=True, exist_ok=True)
        for name in _entries(self._root, hidden=True):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def _is_sound(self, revision: AdapterRevision) -> bool:
        """Return whether an earlier process has fetched this very adapter, and it is as it was."""
        folder = self.folder(revision.served)
        try:
            content = (folder / DIGEST).read_bytes()
            if hashlib.sha256(content).hexdigest() != revision.sha256:
                return False
            files = parse_adapter(content, revision.uri).files
            return all(_same(file_digest(folder / name, name), file) for name, file in files.items())
        except (OSError, Flaw):
            return False

    def _fetch(self, revision: AdapterRevision) -> None:
        with log.timed("fetch", adapter=revision.served, uri=revision.uri) as told:
            store = S3(self._contract.storage, "model")
            adapter = read_adapter(store, revision.uri, revision.sha256, "spec.adapters[].from")
            check_fit(adapter.manifest, revision, self._contract, self._model)
            files = adapter.files
            told["bytes"] = sum(file.size for file in files.values())
            self._root.mkdir(parents=True, exist_ok=True)
            partial = self._root / f".{revision.served}-{uuid.uuid4().hex[:8]}"
            try:
                partial.mkdir()
                adapter.fetch(store, files, partial)
                (partial / DIGEST).write_bytes(adapter.content)
                partial.rename(self.folder(revision.served))
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def _same(found: FileDigest, wanted: FileDigest) -> bool:
    return (found.sha256, found.size) == (wanted.sha256, wanted.size)


def _entries(folder: Path, *, hidden: bool) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith(".") is hidden)
