"""The three kinds of source URI, parsed: `s3://`, `hf://` and `pvc://`."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorikeet_api.contract import PVC_DIR
from lorikeet_storage.errors import StorageError


@dataclass(frozen=True)
class S3Location:
    """A key, a prefix or (with an empty key) a whole bucket."""

    bucket: str
    key: str
    """Without slashes at its ends."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}".rstrip("/")

    @property
    def prefix(self) -> str:
        """The keys below this location begin with it: `a/b` has `a/b/`, a bucket the empty text."""
        return f"{self.key}/" if self.key else ""

    def child(self, relative: str) -> "S3Location":
        """Return the location of `relative` below this one. Raises StorageError for a path that leads out."""
        return S3Location(self.bucket, self.prefix + safe_relative(relative))


@dataclass(frozen=True)
class HubLocation:
    """A repository of the hub, or a path in it."""

    repository: str
    """`organisation/name`."""
    path: str
    """Path in the repository, empty for all of it."""

    def __str__(self) -> str:
        return f"hf://{self.repository}/{self.path}".rstrip("/")


@dataclass(frozen=True)
class PvcLocation:
    """A path in a mounted claim."""

    claim: str
    path: str

    def __str__(self) -> str:
        return f"pvc://{self.claim}/{self.path}"

    @property
    def mount(self) -> Path:
        """Where the claim is mounted."""
        return Path(PVC_DIR, self.claim)

    @property
    def local(self) -> Path:
        """The path in this pod."""
        return self.mount / self.path


Location = S3Location | HubLocation | PvcLocation


def parse(uri: str) -> Location:
    """Return `uri` parsed. Raises StorageError (InvalidContract) for another scheme, `..` or missing parts."""
    scheme, found, rest = uri.partition("://")
    parts = rest.rstrip("/").split("/")
    if not found or any(part in ("", ".", "..") for part in parts):
        raise _bad(uri, "a scheme and path segments without blanks, . or .. are needed")
    if scheme == "s3":
        return S3Location(parts[0], "/".join(parts[1:]))
    if scheme == "hf" and len(parts) >= 2:
        return HubLocation("/".join(parts[:2]), "/".join(parts[2:]))
    if scheme == "pvc" and len(parts) >= 2:
        return PvcLocation(parts[0], "/".join(parts[1:]))
    raise _bad(uri, "use s3://bucket/path, hf://organisation/name or pvc://claim/path")


def parse_s3(uri: str) -> S3Location:
    """Return an `s3://` URI parsed. Raises StorageError (InvalidContract) for any other."""
    location = parse(uri)
    if not isinstance(location, S3Location):
        raise _bad(uri, "an output lies in S3: s3://bucket/path")
    return location


def safe_relative(name: str) -> str:
    """Return `name` if it is a plain relative path, else raise StorageError (InvalidContract).

    Names come from listings of stores and from manifests, which others can write: none may lead out of the
    folder that it is joined to.
    """
    if not is_safe(name):
        raise StorageError("InvalidContract", f"{name!r} is not a plain relative path: rename it")
    return name


def is_safe(name: str) -> bool:
    """Return whether `name` is a plain relative path."""
    parts = name.split("/")
    return not ("\0" in name or any(part in ("", ".", "..") for part in parts) or PurePosixPath(name).is_absolute())


def _bad(uri: str, why: str) -> StorageError:
    return StorageError("InvalidContract", f"{uri!r} is not a usable URI: {why}")
