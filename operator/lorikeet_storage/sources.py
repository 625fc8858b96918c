"""One view of S3, the hub and mounted claims: list what lies below a location, bring some of it into a folder."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from lorikeet_api.contract import FileDigest, StorageAccess
from lorikeet_storage.errors import Place, Refused, Role
from lorikeet_storage.folders import folder_of
from lorikeet_storage.s3 import S3, ObjectInfo
from lorikeet_storage.translate import translated
from lorikeet_storage.uri import HubLocation, Location, PvcLocation, S3Location, safe_relative

_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One file of a source."""

    name: str
    """Path below the source's location; of a single file its own name."""
    size: int
    """Bytes."""
    version: str = ""
    """Changes whenever the content does: an ETag, a time of change; empty where the source has a revision."""


class Source(Protocol):
    """A location that can be listed and fetched from. All methods raise StorageError."""

    place: Place
    revision: str | None
    """Resolved commit, where the source has such a thing."""

    def entries(self, *, recursive: bool) -> list[Entry]:
        """Return the files below the location in the order of their names, or the file itself if it is one."""
        ...

    def fetch(self, entries: Sequence[Entry], into: Path) -> list[FileDigest]:
        """Bring files to `into`/<name> and return their digests in the same order."""
        ...

    def head(self, entry: Entry, size: int) -> bytes | None:
        """Return the first `size` bytes of a file, or None where a source gives only whole files."""
        ...


def open_source(location: Location, role: Role, access: StorageAccess, revision: str | None) -> Source:
    """Return the source at `location`."""
    if (folder := folder_of(location, role)) is not None:
        return PathSource(folder, Place(f"{location} ({folder})", role))
    if isinstance(location, S3Location):
        return S3Source(location, role, access)
    if isinstance(location, HubLocation):
        return HubSource(location, role, revision)
    return PathSource(location.local, Place(str(location), role), location)


class S3Source:
    """A key or a prefix in S3."""

    revision: str | None = None

    def __init__(self, location: S3Location, role: Role, access: StorageAccess) -> None:
        self._location = location
        self._store = S3(access, role)
        self._known: dict[str, tuple[S3Location, ObjectInfo]] = {}
        self.place = self._store.place(location)

    def entries(self, *, recursive: bool) -> list[Entry]:
        """Return the objects below the prefix, or the object itself."""
        self._known = {
            info.name: (self._location.child(info.name), info)
            for info in self._store.objects(self._location, recursive=recursive)
        }
        if not self._known and self._location.key and (alone := self._store.head(self._location)):
            self._known = {alone.name: (self._location, alone)}
        return [Entry(name, info.size, info.etag) for name, (_, info) in sorted(self._known.items())]

    def fetch(self, entries: Sequence[Entry], into: Path) -> list[FileDigest]:
        """Download the objects, several at a time."""
        wanted = [(*self._known[entry.name], into / safe_relative(entry.name)) for entry in entries]
        sums = self._store.download(wanted)
        return [
            FileDigest(path=entry.name, sha256=sha256, size=entry.size)
            for entry, sha256 in zip(entries, sums, strict=True)
        ]

    def head(self, entry: Entry, size: int) -> bytes | None:
        """Return the first bytes of an object."""
        return self._store.first(*self._known[entry.name], size)


class HubSource:
    """A repository of the Hugging Face hub at one commit, or a path in it."""

    def __init__(self, location: HubLocation, role: Role, revision: str | None) -> None:
        from huggingface_hub import HfApi  # slow to import, and not needed for S3

        self._location = location
        self._type: Literal["model", "dataset"] = "model" if role == "model" else "dataset"
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self.place = Place(str(location) + (f"@{revision}" if revision else ""), role)
        with translated(self.place):
            info = self._api.repo_info(
                location.repository, repo_type=self._type, revision=revision, files_metadata=True, timeout=30
            )
        self.revision: str | None = info.sha
        self._sizes = {sibling.rfilename: sibling.size or 0 for sibling in getattr(info, "siblings", None) or []}

    def entries(self, *, recursive: bool) -> list[Entry]:
        """Return the files below the path, or the file itself."""
        if (alone := self._sizes.get(self._location.path)) is not None:
            return [Entry(self._location.path.rpartition("/")[2], alone)]
        prefix = f"{self._location.path}/" if self._location.path else ""
        names = [name[len(prefix) :] for name in sorted(self._sizes) if name.startswith(prefix)]
        return [Entry(name, self._sizes[prefix + name]) for name in names if recursive or "/" not in name]

    def fetch(self, entries: Sequence[Entry], into: Path) -> list[FileDigest]:
        """Download the files of the resolved commit through huggingface_hub."""
        staging = into / ".hub"  # beside the target, so that a finished file is moved, not copied
        try:
            return [self._fetch(entry, into, staging) for entry in entries]
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def head(self, entry: Entry, size: int) -> bytes | None:
        """Return None: the hub's client brings whole files."""
        return None

    def _fetch(self, entry: Entry, into: Path, staging: Path) -> FileDigest:
        path = self._location.path
        alone = path in self._sizes
        remote = path if alone else f"{path}/{entry.name}" if path else entry.name
        with translated(self.place):
            got = self._api.hf_hub_download(
                self._location.repository,
                remote,
                repo_type=self._type,
                revision=self.revision,
                local_dir=staging,
            )
            target = into / safe_relative(entry.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(got).replace(target)
            digest = file_digest(target, entry.name)
        if entry.size and digest.size != entry.size:
            raise self.place.invalid(
                f"{remote} of {self.place.uri} came with {digest.size} of {entry.size} bytes: try again"
            )
        return digest


class PathSource:
    """A path in a claim that the operator mounted, or on the user's own machine. Nothing is copied: `fetch` links."""

    revision: str | None = None

    def __init__(self, root: Path, place: Place, claim: PvcLocation | None = None) -> None:
        """Take the claim that the path must stay in; without one links may lead anywhere."""
        self._root = root
        self._claim = claim
        self.place = place

    def entries(self, *, recursive: bool) -> list[Entry]:
        """Return the regular files below the folder, or the file itself."""
        root, claim = self._root, self._claim
        with translated(self.place):
            if claim is not None and not claim.mount.is_dir():
                raise self.place.missing(
                    f"claim {claim.claim} is not mounted in this pod: does it exist in the job's namespace?"
                )
            if root.is_file():
                return [_entry(root.name, root)]
            if not root.is_dir():
                if claim is not None:
                    raise self.place.missing(f"claim {claim.claim} has no path {claim.path}: correct it")
                return []
            files = [(path.relative_to(root).as_posix(), path) for path in self._files(root, recursive=recursive)]
            return [_entry(name, path) for name, path in sorted(files)]

    def _files(self, folder: Path, above: tuple[Path, ...] = (), *, recursive: bool) -> Iterator[Path]:
        """Yield the files of a folder, and with `recursive` of those below it, through links to folders too."""
        real = folder.resolve()
        self._check(real, folder.name)
        if real in above:
            raise self.place.invalid(f"{folder.name} in {self.place.uri} is a link to a folder around it: remove it")
        for path in folder.iterdir():
            if path.is_file():
                yield path
            elif recursive and path.is_dir():
                yield from self._files(path, (*above, real), recursive=recursive)

    def fetch(self, entries: Sequence[Entry], into: Path) -> list[FileDigest]:
        """Link the files into the folder and digest them."""
        return [self._link(entry, into) for entry in entries]

    def head(self, entry: Entry, size: int) -> bytes | None:
        """Return the first bytes of a file."""
        with translated(self.place), self._real(entry).open("rb") as file:
            return file.read(size)

    def _real(self, entry: Entry) -> Path:
        """Return the file itself, wherever links lead."""
        root = self._root
        path = (root if root.is_file() else root / entry.name).resolve()
        self._check(path, entry.name)
        return path

    def _check(self, real: Path, name: str) -> None:
        if self._claim is not None and not real.is_relative_to(self._claim.mount.resolve()):
            raise Refused(
                "StorageRefused", f"{name} in {self.place.uri} is a link out of the claim: copy what it leads to"
            )

    def _link(self, entry: Entry, into: Path) -> FileDigest:
        with translated(self.place):
            path = self._real(entry)
            target = into / safe_relative(entry.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(path)
            return file_digest(path, entry.name)


def _entry(name: str, path: Path) -> Entry:
    stat = path.stat()
    return Entry(name, stat.st_size, str(stat.st_mtime_ns))


def file_digest(path: Path, name: str) -> FileDigest:
    """Return the digest of a local file under `name`, read in chunks."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(path=name, sha256=digest.hexdigest(), size=size)
