"""Folders of this machine in the place of buckets and claims: how a run without a cluster needs no S3.

The environment says which URIs lie in which folders. It is none of the contract's: that is the same wherever it runs,
and what is published to a folder may be copied to the bucket that the contract names.
"""

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from lorikeet_storage.errors import Place, Role
from lorikeet_storage.s3 import MIB, PARTIAL, ObjectInfo, write_file
from lorikeet_storage.translate import translated
from lorikeet_storage.uri import Location, S3Location

FOLDERS_VARIABLE: Final = "LORIKEET_FOLDERS"
"""A JSON list of two objects, of sources and of outputs: beginnings of `s3://` and `pvc://` URIs, and the folder (or
file) in which each lies. What is read from a folder is not written there, and the other way round."""

_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}
"""What file systems say that have no hard links, such as those of memory cards and some network shares."""


def use_folders(sources: Mapping[str, Path], outputs: Mapping[str, Path] | None = None) -> None:
    """Have this process, and those that it starts, look for these URIs in these folders."""
    told = [{uri: str(folder) for uri, folder in folders.items()} for folders in (sources, outputs or {})]
    os.environ[FOLDERS_VARIABLE] = json.dumps(told)


def folder_of(location: Location, role: Role) -> Path | None:
    """Return where a location lies on this machine, or None if it lies where its URI says."""
    found = _find(location, role)
    return None if found is None else Path(*found)


def _find(location: Location, role: Role) -> tuple[str, str] | None:
    """Return the folder in whose place the location is, and the path below it; the longest beginning counts."""
    told: list[dict[str, str]] = json.loads(os.environ.get(FOLDERS_VARIABLE) or "[{}, {}]")
    folders = told[role == "output"]
    uri = str(location)
    for beginning in sorted(folders, key=len, reverse=True):
        if uri == beginning or uri.startswith(f"{beginning}/"):
            return folders[beginning], uri[len(beginning) + 1 :]
    return None


class FolderStore:
    """Runs' folders on this machine: what `lorikeet_storage.s3.S3` does with them in a bucket. All methods raise
    StorageError."""

    def __init__(self, role: Role = "output") -> None:
        """Look where what has this role lies."""
        self._role: Role = role

    def objects(self, location: S3Location, *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Yield the files below `location` in the order of their names."""
        root = self._path(location)
        with self._told(location):
            found = root.rglob("*") if recursive else root.glob("*")
            for path in sorted(path for path in found if path.is_file() and path.suffix != PARTIAL):
                yield ObjectInfo(path.relative_to(root).as_posix(), path.stat().st_size, "")

    def head(self, location: S3Location) -> ObjectInfo | None:
        """Return name and size of one file, or None if it is absent."""
        path = self._path(location)
        with self._told(location):
            return ObjectInfo(path.name, path.stat().st_size, "") if path.is_file() else None

    def read(self, location: S3Location, limit: int = 16 * MIB) -> bytes | None:
        """Return a small file's bytes, or None if it is absent. More than `limit` bytes are Invalid."""
        info = self.head(location)
        if info is None:
            return None
        if info.size > limit:
            raise self.place(location).invalid(
                f"{location} has {info.size} bytes, at most {limit} were expected: it is no such file"
            )
        with self._told(location):
            return self._path(location).read_bytes()

    def download(self, wanted: Sequence[tuple[S3Location, ObjectInfo, Path]]) -> list[str]:
        """Copy files out of the folder and return the sha256 of each."""
        sums = []
        for location, _, path in wanted:
            with self._told(location):
                sums.append(write_file(path, _chunks(self._path(location))))
        return sums

    def upload(self, path: Path, location: S3Location, on_sent: Callable[[int], None] | None = None) -> None:
        """Copy a file into the folder; it has its name there when it is whole. `on_sent` is told the bytes."""
        with self._told(location):
            write_file(self._path(location), _chunks(path, on_sent))

    def copy(self, source: S3Location, target: S3Location, size: int) -> None:
        """Copy inside the folder."""
        del size
        with self._told(source):
            write_file(self._path(target), _chunks(self._path(source)))

    def put(self, location: S3Location, data: bytes) -> None:
        """Write a small file, replacing what was there."""
        with self._told(location):
            write_file(self._path(location), iter([data]))

    def put_if_absent(self, location: S3Location, data: bytes) -> bool:
        """Write a small file unless one is there; return whether this call wrote it."""
        path = self._path(location)
        with self._told(location):
            whole = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
            write_file(whole, iter([data]))
            try:
                os.link(whole, path)  # unlike a rename it replaces nothing
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create(path, data)
            finally:
                whole.unlink()
        return True

    def abort_uploads(self, location: S3Location) -> None:
        """Remove what copies that were killed have left below `location`."""
        with self._told(location):
            for path in self._path(location).rglob(f"*{PARTIAL}"):
                path.unlink()

    def delete(self, location: S3Location) -> None:
        """Remove one file, and the folders that are empty without it; one that is absent is no error."""
        top, below = _find(location, self._role) or ("", "")
        with self._told(location):
            Path(top, below).unlink(missing_ok=True)
            with suppress(OSError):  # of the first one that is not empty
                for folder in Path(below).parents[:-1]:
                    Path(top, folder).rmdir()

    def place(self, location: S3Location) -> Place:
        """Return `location` as the place of an error message, with its folder."""
        path = self._path(location)
        return Place(f"{location} ({path})", self._role, folder=path)

    def _path(self, location: S3Location) -> Path:
        found = folder_of(location, self._role)
        assert found is not None, location  # noqa: S101 - who opens this store has asked
        return found

    @contextmanager
    def _told(self, location: S3Location) -> Iterator[None]:
        """Raise what the file system says as StorageError."""
        place = self.place(location)
        with translated(place):
            try:
                yield
            except FileNotFoundError as error:
                raise place.missing(f"{place.uri} does not exist") from error


def _create(path: Path, data: bytes) -> bool:
    """Write a file where none is, half if we are killed meanwhile; return whether this call wrote it."""
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def _chunks(path: Path, on_sent: Callable[[int], None] | None = None) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            if on_sent is not None:
                on_sent(len(chunk))
            yield chunk
