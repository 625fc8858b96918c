"""What runs have published, LoRA adapters above all: pinned by the sha256 of their manifest; no pickle is read.

`read_adapter` looks at one, `Adapter.fetch` brings its files. All raise StorageError; what is wrong with the adapter
itself is a Flaw.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from lorikeet_api.base import first_error
from lorikeet_api.conditions import TrainerReason
from lorikeet_api.contract import FileDigest, Manifest
from lorikeet_storage.errors import StorageError
from lorikeet_storage.publish import MANIFEST
from lorikeet_storage.s3 import ObjectInfo
from lorikeet_storage.stores import Store
from lorikeet_storage.uri import S3Location, is_safe, parse_s3

WEIGHTS: Final = ".safetensors"
CONFIG: Final = "adapter_config.json"
_FOLDER: Final = "adapter/"
_RESTORE: Final = "restore the file, or publish the adapter again"

FlawKind = Literal["ManifestMissing", "ManifestDiffers", "ManifestInvalid", "NotServable", "FileCorrupt"]
_REASON: Final[dict[FlawKind, TrainerReason]] = {
    "ManifestMissing": "ModelNotFound",
    "ManifestDiffers": "SourceChanged",
    "ManifestInvalid": "ModelInvalid",
    "NotServable": "ModelInvalid",
    "FileCorrupt": "SourceChanged",
}


class Flaw(StorageError):
    """The adapter that was meant is not there, or is no adapter; `kind` says how, in an engine's words."""

    def __init__(self, kind: FlawKind, message: str) -> None:
        super().__init__(_REASON[kind], message)
        self.kind: FlawKind = kind


@dataclass(frozen=True)
class Adapter:
    """A published adapter as its manifest tells it."""

    location: S3Location
    """Folder of the run."""
    content: bytes
    """The manifest's, of which the pinned sha256 is."""
    manifest: Manifest

    @property
    def files(self) -> dict[str, FileDigest]:
        """The files that are read, by their names in the adapter's folder; no pickle is among them. Raises Flaw."""
        taken = self.below(_FOLDER)
        if CONFIG not in taken or not any(name.endswith(WEIGHTS) for name in taken):
            raise Flaw(
                "NotServable",
                f"{self.location} has no {_FOLDER}{CONFIG} with a {WEIGHTS} file beside it: only safetensors are"
                " loaded, since pickles can run code; publish the adapter again",
            )
        return taken

    def below(self, folder: str) -> dict[str, FileDigest]:
        """Return the files in a folder of the run that may be read, by their names in it; no pickle is among them."""
        files = self.manifest.files
        named = {file.path.removeprefix(folder): file for file in files if file.path.startswith(folder)}
        return {
            name: file
            for name, file in named.items()
            if "/" not in name and not name.startswith(".") and name.endswith((WEIGHTS, ".json"))
        }

    def fetch(
        self, store: Store, names: Iterable[str], into: Path, files: Mapping[str, FileDigest] | None = None
    ) -> list[FileDigest]:
        """Bring some of the files into a folder, and return them if they are what the manifest says. Raises Flaw.

        `files` are those to choose from, by their names; the adapter's where none are given.
        """
        files = self.files if files is None else files
        wanted = []
        for name in names:
            location, size = self.location.child(files[name].path), files[name].size
            info = store.head(location)
            if info is None or info.size != size:
                found = "does not exist" if info is None else f"has {info.size} bytes"
                raise Flaw("FileCorrupt", f"{location} {found}, the manifest says {size} bytes: {_RESTORE}")
            wanted.append((location, ObjectInfo(name, size, info.etag), into / name))
        fetched = []
        for (location, info, _), sha256 in zip(wanted, store.download(wanted), strict=True):
            if sha256 != files[info.name].sha256:
                raise Flaw(
                    "FileCorrupt",
                    f"{location} has sha256 {sha256}, the manifest says {files[info.name].sha256}: {_RESTORE}",
                )
            fetched.append(FileDigest(path=info.name, sha256=sha256, size=info.size))
        return fetched


def read_adapter(store: Store, uri: str, sha256: str | None, field: str) -> Adapter:
    """Return the adapter in a run's folder. Raises Flaw if its manifest is not there, or not the pinned one.

    `sha256` is the pin; None takes what is there. `field` is where the resource names the run.
    """
    folder = parse_s3(uri)
    location = folder.child(MANIFEST)
    content = store.read(location)
    if content is None:
        raise Flaw(
            "ManifestMissing", f"{location} does not exist: restore the run's folder, or name another run in {field}"
        )
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise Flaw(
            "ManifestDiffers",
            f"{location} has sha256 {found}, pinned is {sha256}: restore it, or name what is there now in {field}",
        )
    return parse_adapter(content, uri)


def parse_adapter(content: bytes, uri: str) -> Adapter:
    """Return the adapter whose manifest has this content. Raises Flaw (ManifestInvalid)."""
    folder = parse_s3(uri)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _invalid(folder, first_error(error)) from error
    if unsafe := [file.path for file in manifest.files if not is_safe(file.path)]:
        raise _invalid(folder, f"{unsafe[0]!r} is not a plain relative path")
    return Adapter(folder, content, manifest)


def same_weights(one: Iterable[FileDigest], other: Iterable[FileDigest]) -> bool:
    """Return whether two copies of a model have the same weights, whatever their files' names."""
    first, second = (sorted(file.sha256 for file in files if file.path.endswith(WEIGHTS)) for files in (one, other))
    return first == second


def _invalid(folder: S3Location, why: str) -> Flaw:
    return Flaw(
        "ManifestInvalid", f"{folder}/{MANIFEST} is no manifest of this release ({why}): publish the adapter again"
    )
