"""Checkpoints of a run in S3: each in a folder of its own, and there only once its `checkpoint.json` is.

Two pods of one run (one on a node that the cluster has given up, and its successor) may save the same step with
bytes that differ by rounding, so a folder is named by the step and by who saves it.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from lorikeet_api.contract import Checkpoint, RunContract
from lorikeet_storage.errors import Conflict
from lorikeet_storage.publish import CHECKPOINTS, run_folder
from lorikeet_storage.s3 import ObjectInfo
from lorikeet_storage.sources import file_digest
from lorikeet_storage.stores import open_output
from lorikeet_storage.uri import S3Location, is_safe

MARKER: Final = "checkpoint.json"
BEST: Final = "best"
"""Folder, beside the checkpoints, of weights that outlive the run; it is no checkpoint, nobody goes on from it."""


@dataclass(frozen=True)
class Stored:
    """A complete checkpoint in S3."""

    location: S3Location
    checkpoint: Checkpoint


class Checkpoints:
    """The checkpoints of one run on one basis: what it is trained on. All methods raise StorageError."""

    def __init__(self, contract: RunContract, basis: str) -> None:
        self._store = open_output(contract.output_uri, contract.storage)
        self._folder = run_folder(contract.output_uri, contract.run_id).child(CHECKPOINTS)
        self._run_id = contract.run_id
        self._basis = basis

    def newest(self) -> Iterator[Stored]:
        """Yield the complete checkpoints, the newest first; one whose files are not all there is none."""
        for name, objects in sorted(self._listed().items(), reverse=True):
            found = self._read(name, objects)
            if found is not None and found.checkpoint.basis == self._basis:
                yield found

    def fetch(self, stored: Stored, into: Path) -> None:
        """Bring a checkpoint's files into the folder `into`. OutputConflict if they are not those that were saved."""
        files = stored.checkpoint.files
        wanted = [
            (stored.location.child(file.path), ObjectInfo(file.path, file.size, ""), into / file.path) for file in files
        ]
        for file, sha256 in zip(files, self._store.download(wanted), strict=True):
            if sha256 != file.sha256:
                place = self._store.place(stored.location.child(file.path))
                raise Conflict("OutputConflict", f"{place.uri} is not what was saved: delete its folder")

    def save(self, folder: Path, step: int, on_sent: Callable[[int], None] | None = None) -> None:
        """Upload the files of `folder` as the checkpoint of `step`; it is one from the last write on."""
        digests = [
            file_digest(path, path.relative_to(folder).as_posix())
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        location = self._folder.child(f"{step:08d}-{uuid.uuid4().hex[:8]}")
        for file in digests:
            self._store.upload(folder / file.path, location.child(file.path), on_sent)
        made = Checkpoint(run_id=self._run_id, basis=self._basis, step=step, files=digests)
        self._store.put(location.child(MARKER), json.dumps(made.to_wire(), indent=1).encode())

    def prune(self, keep: int) -> None:
        """Remove all but the `keep` newest complete checkpoints, what is older and incomplete, and those of other data.

        What is newer than the newest complete one and incomplete stays: another pod of the run may be saving it now.
        """
        listed = self._listed()
        complete = {name: found for name, objects in listed.items() if (found := self._read(name, objects)) is not None}
        ours = sorted((name for name in complete if complete[name].checkpoint.basis == self._basis), reverse=True)
        kept = ours[:keep]
        if kept:
            doomed = [name for name in listed if name not in kept and (name < kept[0] or name in complete)]
            self._remove({name: listed[name] for name in doomed})

    def keep_best(self, folder: Path) -> None:
        """Upload the files of `folder`, which `remove_all` then leaves."""
        for path in sorted(folder.iterdir()):
            self._store.upload(path, self._folder.child(f"{BEST}/{path.name}"))

    def remove_all(self, but: str | None = None) -> None:
        """Remove every checkpoint, all folders `but` one, and what killed uploads have left in the store's hands."""
        self._remove({name: objects for name, objects in self._listed().items() if name != but})
        self._store.abort_uploads(self._folder)

    def _listed(self) -> dict[str, list[ObjectInfo]]:
        """Return the objects of each checkpoint's folder by the folder's name."""
        listed: dict[str, list[ObjectInfo]] = {}
        for info in self._store.objects(self._folder):
            folder, _, name = info.name.partition("/")
            if name:
                listed.setdefault(folder, []).append(ObjectInfo(name, info.size, info.etag))
        return listed

    def _read(self, name: str, objects: list[ObjectInfo]) -> Stored | None:
        sizes = {info.name: info.size for info in objects}
        if MARKER not in sizes:
            return None
        location = self._folder.child(name)
        data = self._store.read(location.child(MARKER))
        try:
            found = Checkpoint.model_validate_json(data or b"")
        except ValidationError:
            return None
        whole = all(is_safe(file.path) and sizes.get(file.path) == file.size for file in found.files)
        return Stored(location, found) if whole and found.run_id == self._run_id else None

    def _remove(self, listed: dict[str, list[ObjectInfo]]) -> None:
        for folder, objects in listed.items():
            # The marker first: what is half removed is no checkpoint.
            for info in sorted(objects, key=lambda info: info.name != MARKER):
                self._store.delete(self._folder.child(f"{folder}/{info.name}"))
