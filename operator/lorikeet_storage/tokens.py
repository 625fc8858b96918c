"""The tokenised sets of a run: each in a folder named by what decides its content, and there only once its index is.

Two pods of one run may write the same set: they write the same bytes under the same names.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from lorikeet_api.contract import FileDigest, RunContract
from lorikeet_storage.errors import Conflict, StorageError
from lorikeet_storage.publish import TOKENS, run_folder
from lorikeet_storage.s3 import ObjectInfo
from lorikeet_storage.sources import file_digest
from lorikeet_storage.stores import open_output
from lorikeet_storage.uri import safe_relative

INDEX: Final = "index.json"


class TokenSets:
    """The tokenised sets of one run. All methods raise StorageError."""

    def __init__(self, contract: RunContract) -> None:
        self._store = open_output(contract.output_uri, contract.storage)
        self._folder = run_folder(contract.output_uri, contract.run_id).child(TOKENS)

    def is_any(self) -> bool:
        """Whether there is a whole set, whatever its address."""
        return any(info.name.endswith(f"/{INDEX}") for info in self._store.objects(self._folder))

    def index(self, address: str) -> bytes | None:
        """Return the index of a set, or None if it is not there whole."""
        return self._store.read(self._folder.child(f"{address}/{INDEX}"))

    def save(self, address: str, path: Path) -> FileDigest:
        """Upload one file of a set; return its digest."""
        self._store.upload(path, self._folder.child(f"{address}/{path.name}"))
        return file_digest(path, path.name)

    def finish(self, address: str, index: bytes) -> None:
        """Write the index of a set whose files are all there, and remove other sets: they are of other data."""
        self._store.put(self._folder.child(f"{address}/{INDEX}"), index)
        with suppress(StorageError):  # no right to delete, say: nobody looks for them
            self._remove(
                [info.name for info in self._store.objects(self._folder) if not info.name.startswith(f"{address}/")]
            )

    def fetch(self, address: str, files: Sequence[FileDigest], into: Path) -> None:
        """Bring files of a set into the folder `into`. OutputConflict if they are not those that were saved."""
        location = self._folder.child(address)
        wanted = [
            (location.child(safe_relative(file.path)), ObjectInfo(file.path, file.size, ""), into / file.path)
            for file in files
        ]
        for file, sha256 in zip(files, self._store.download(wanted), strict=True):
            if sha256 != file.sha256:
                place = self._store.place(location.child(file.path))
                raise Conflict("OutputConflict", f"{place.uri} is not what was saved: delete its folder")

    def remove(self, address: str) -> None:
        """Remove a set, whole or not."""
        self._remove([f"{address}/{info.name}" for info in self._store.objects(self._folder.child(address))])

    def _remove(self, names: Sequence[str]) -> None:
        # Indices first: what is half removed is no set.
        for name in sorted(names, key=lambda name: not name.endswith(f"/{INDEX}")):
            self._store.delete(self._folder.child(name))
