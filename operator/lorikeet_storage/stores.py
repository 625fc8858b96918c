"""Where outputs lie: a bucket, or a folder in its place. Who publishes does not know which."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from lorikeet_api.contract import StorageAccess
from lorikeet_storage.errors import Place, Role
from lorikeet_storage.folders import FolderStore, folder_of
from lorikeet_storage.s3 import MIB, S3, ObjectInfo
from lorikeet_storage.uri import S3Location, parse_s3


class Store(Protocol):
    """What publishing and checkpoints need of a store. All methods raise StorageError."""

    def place(self, location: S3Location) -> Place:
        """Return `location` as the place of an error message."""
        ...

    def objects(self, location: S3Location, *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Yield what lies below `location`."""
        ...

    def head(self, location: S3Location) -> ObjectInfo | None:
        """Return what the store says about one object, or None if it is absent."""
        ...

    def read(self, location: S3Location, limit: int = 16 * MIB) -> bytes | None:
        """Return a small object's bytes, or None if it is absent."""
        ...

    def download(self, wanted: Sequence[tuple[S3Location, ObjectInfo, Path]]) -> list[str]:
        """Write objects to files and return the sha256 of each."""
        ...

    def upload(self, path: Path, location: S3Location, on_sent: Callable[[int], None] | None = None) -> None:
        """Store a file; `on_sent` is called with the bytes that went out since the last call."""
        ...

    def copy(self, source: S3Location, target: S3Location, size: int) -> None:
        """Copy inside the store."""
        ...

    def put(self, location: S3Location, data: bytes) -> None:
        """Write a small object, replacing what was there."""
        ...

    def put_if_absent(self, location: S3Location, data: bytes) -> bool:
        """Write a small object unless one is there; return whether this call wrote it."""
        ...

    def abort_uploads(self, location: S3Location) -> None:
        """Drop what uploads that were never completed have left below `location`."""
        ...

    def delete(self, location: S3Location) -> None:
        """Remove one object; one that is absent is no error."""
        ...


def open_output(output_uri: str, access: StorageAccess) -> Store:
    """Return the store of an output. Raises StorageError."""
    return open_run(output_uri, access, "output")


def open_run(uri: str, access: StorageAccess, role: Role) -> Store:
    """Return the store of what a run has published, or is to. Raises StorageError."""
    in_folder = folder_of(parse_s3(uri), role) is not None
    return FolderStore(role) if in_folder else S3(access, role)
