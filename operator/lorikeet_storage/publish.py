"""Publishing: atomic, and addressed by the run.

Below `<output>/<runId>/` lie `run.json` (whose folder this is), the files, and `manifest.json`, written last.
Two pods of one run may publish at the same time, such as one on a node that the cluster has given up and its
successor; their files can differ by rounding. So each uploads to a staging folder of its own, `commit.json`
(written by the first, by no second) decides whose files count, and whoever comes by copies those into place
inside the store. Any number of writers then write the same bytes, and an end at any point leaves nothing half.
`tokens/` has the data as tokens until the run is published (see `tokens`).
What is left there while a run goes on lies in `live/`, of which no manifest names anything: a pod that is given up may
write there whenever it likes.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from pydantic import ValidationError

from lorikeet_api.contract import (
    REPORT,
    Artifacts,
    LatestPointer,
    Manifest,
    RunContract,
    StorageAccess,
    run_id,
)
from lorikeet_storage.errors import Conflict, Place, StorageError
from lorikeet_storage.folders import folder_of
from lorikeet_storage.sources import file_digest
from lorikeet_storage.stores import Store, open_output
from lorikeet_storage.uri import S3Location, parse_s3, safe_relative

MANIFEST: Final = "manifest.json"
RUN: Final = "run.json"
COMMIT: Final = "commit.json"
LATEST: Final = "latest.json"
STAGING: Final = "staging"
LIVE: Final = "live"
CHECKPOINTS: Final = "checkpoints"
TOKENS: Final = "tokens"
_RESERVED: Final = {MANIFEST, RUN, COMMIT, LATEST, STAGING, LIVE, CHECKPOINTS, TOKENS}


@dataclass(frozen=True)
class Published:
    """What a run has published."""

    folder: S3Location
    """Where it was found. It may have been copied there: the contract in the manifest is of where it was made."""
    manifest: Manifest
    sha256: str
    """The manifest's."""

    @property
    def artifacts(self) -> Artifacts:
        """What a run's record says of it."""
        files = self.manifest.files
        return Artifacts(
            uri=str(self.folder),
            run_id=self.manifest.run_id,
            revision=self.sha256[:8],
            sha256=self.sha256,
            size_bytes=sum(file.size for file in files),
            report=str(self.folder.child(REPORT)) if any(file.path == REPORT for file in files) else None,
        )


def find_published(output_uri: str, run_id: str, access: StorageAccess) -> Published | None:
    """Return what a finished run has published, or None if it has published nothing.

    Every file that it names is looked up in the store: a manifest whose files are gone is no result. Raises
    StorageError: OutputConflict if the manifest is unreadable, of another run or without its files.
    """
    store = open_output(output_uri, access)
    folder = run_folder(output_uri, run_id)
    location = folder.child(MANIFEST)
    data = store.read(location)
    if data is None:
        return None
    manifest = _parse(data, store.place(location), run_id)
    stored = {info.name: info.size for info in store.objects(folder)}
    lost = [file.path for file in manifest.files if stored.get(file.path) != file.size]
    if lost:
        raise Conflict(
            "OutputConflict",
            f"{store.place(location).uri} names files that are missing or of another size ({', '.join(lost[:5])}):"
            " restore them, or delete the run's folder to train again",
        )
    return Published(folder, manifest, hashlib.sha256(data).hexdigest())


def check_free(contract: RunContract) -> None:
    """Take the run's folder, or find that it is ours already: an earlier attempt, or this call before.

    Writes `run.json`, so it also proves the right to write. Raises StorageError: OutputConflict if the folder
    belongs to another run or holds files that no run of ours put there.
    """
    store = open_output(contract.output_uri, contract.storage)
    folder = run_folder(contract.output_uri, contract.run_id)
    marker = folder.child(RUN)
    owner = store.read(marker)
    if owner is None:
        foreign = [info.name for info, _ in zip(store.objects(folder), range(5), strict=False)]
        if foreign:
            raise Conflict(
                "OutputConflict",
                f"{store.place(folder).uri} holds files that are not of this run ({', '.join(foreign)}): move them"
                " away or choose another spec.output.uri",
            )
        if store.put_if_absent(marker, _marker(contract)):
            return
        owner = store.read(marker) or b""
    if not _same_run(owner, contract):
        raise Conflict(
            "OutputConflict",
            f"{store.place(marker).uri} describes another run than this one: move its folder away or choose another"
            " spec.output.uri",
        )
    if RunContract.model_validate_json(owner).job_uid != contract.job_uid:
        # A job that is gone began it and did not finish: what comes of it now is this one's.
        store.put(marker, _marker(contract))


def find_run(contract: RunContract) -> RunContract | None:
    """Return the contract with which an earlier attempt began this run, or None if none did. Raises StorageError."""
    store = open_output(contract.output_uri, contract.storage)
    marker = store.read(run_folder(contract.output_uri, contract.run_id).child(RUN))
    if marker is None or not _same_run(marker, contract):
        return None
    return RunContract.model_validate_json(marker)


def _marker(contract: RunContract) -> bytes:
    return json.dumps(contract.to_wire(), indent=1, sort_keys=True, ensure_ascii=False).encode()


def publish(folder: Path, draft: Manifest) -> Published:
    """Publish all files of `folder` under the run of `draft.contract`, the manifest last, and point `latest` at it.

    `draft.files` is filled in here, and how long it took. If another pod of the same run was first, its result stands
    and is returned. Raises StorageError: OutputConflict if an attempt on other data was committed and never published.
    A retry of the same call is safe.
    """
    contract = draft.contract
    found = find_published(contract.output_uri, contract.run_id, contract.storage)
    if found is not None:
        # Whoever published may have been ended before it could.
        _sweep(open_output(contract.output_uri, contract.storage), run_folder(contract.output_uri, contract.run_id))
        return found
    digests = [file_digest(path, name) for name, path in _published_files(folder)]
    if not digests:
        raise StorageError("InternalError", f"{folder} holds no file to publish")
    store = open_output(contract.output_uri, contract.storage)
    run = run_folder(contract.output_uri, contract.run_id)
    attempt = uuid.uuid4().hex[:12]
    _stage(store, folder, draft.model_copy(update={"files": digests}), run.child(f"{STAGING}/{attempt}"))
    try:
        return _commit(store, run, draft, attempt)
    finally:
        _sweep(store, run)


def leave_file(contract: RunContract, path: Path, name: str) -> None:
    """Store a file in `live/` of the run's folder until it is published, which removes it. Raises StorageError."""
    store = open_output(contract.output_uri, contract.storage)
    store.upload(path, run_folder(contract.output_uri, contract.run_id).child(f"{LIVE}/{safe_relative(name)}"))


def run_place(contract: RunContract) -> str:
    """Return where a run publishes, as a person looks for it: a folder of this machine, or a URI."""
    folder = run_folder(contract.output_uri, contract.run_id)
    return str(folder_of(folder, "output") or folder)


def remove_run(contract: RunContract) -> str:
    """Delete everything of a run, the pointer to it too; return what was done, as a sentence.

    Only if `run.json` says that this very job made it, not another one with the same request, nor an earlier one of
    the same name whose result it has adopted. Raises StorageError; a retry of the same call is safe.
    """
    store = open_output(contract.output_uri, contract.storage)
    folder = run_folder(contract.output_uri, contract.run_id)
    data = store.read(folder.child(RUN))
    if data is None:
        return f"{folder} holds nothing of the run"
    try:
        owner = RunContract.model_validate_json(data)
    except ValidationError:
        return f"{folder.child(RUN)} cannot be read: {folder} is left as it is"
    ids = {(one.namespace, one.name, one.job_uid) for one in (owner, contract)}
    if len(ids) > 1:
        return f"{folder} was made for {owner.namespace}/{owner.name}, uid {owner.job_uid}: it is left as it is"
    names = [info.name for info in store.objects(folder)]
    # The manifest goes first: what is half deleted is no result; and whose it was last, for a retry.
    for name in sorted(names, key=lambda name: (name == RUN, name != MANIFEST)):
        store.delete(folder.child(name))
    with suppress(StorageError):  # a store that does not know them, or no right to see them
        store.abort_uploads(folder)
    latest = parse_s3(contract.output_uri).child(LATEST)
    try:
        pointer = LatestPointer.model_validate_json(store.read(latest) or b"")
    except ValidationError:
        pointer = None
    if pointer is not None and pointer.run_id == contract.run_id:
        store.delete(latest)
    return f"deleted {folder} ({len(names)} objects)"


def _stage(store: Store, folder: Path, manifest: Manifest, staging: S3Location) -> None:
    """Upload an attempt's files, and the manifest with how long that took."""
    began = monotonic()
    for file in manifest.files:
        store.upload(folder / file.path, staging.child(file.path))
    metrics = manifest.metrics.published_in(round(monotonic() - began, 3))
    store.put(staging.child(MANIFEST), manifest.model_copy(update={"metrics": metrics}).to_bytes())


def _commit(store: Store, run: S3Location, draft: Manifest, attempt: str) -> Published:
    """Put the committed attempt's files into place, ours or that of the pod that was first."""
    store.put_if_absent(run.child(COMMIT), json.dumps({"attempt": attempt}).encode())
    committed = _committed(store, run)
    staging = run.child(f"{STAGING}/{committed}")
    data = store.read(staging.child(MANIFEST))
    if data is not None:
        manifest = _parse(data, store.place(staging.child(MANIFEST)), draft.run_id)
        if _read(manifest) != _read(draft):
            raise Conflict(
                "OutputConflict",
                f"{store.place(run.child(COMMIT)).uri} names an attempt on other data, another base model or"
                " other reward models that was stopped before it was published: delete this file and run again",
            )
        try:
            for file in manifest.files:
                store.copy(staging.child(file.path), run.child(file.path), file.size)
        except StorageError:
            # The other pod sweeps the staging folders once it has published: then nothing is left to do.
            if store.head(run.child(MANIFEST)) is None:
                raise
        else:
            store.put_if_absent(run.child(MANIFEST), data)
    return _point(store, run, draft.contract)


def _read(manifest: Manifest) -> list[list[str]]:
    """Return the digests of all that a run has read: one on a machine of its own has no pins that hold them.

    The adapter that it began with is held by the run's id.
    """
    sources = (manifest.base_model, *manifest.data, *(manifest.rewards or []))
    return [[file.sha256 for file in source.files] for source in sources]


def _committed(store: Store, run: S3Location) -> str:
    location = run.child(COMMIT)
    try:
        attempt = json.loads(store.read(location) or b"")["attempt"]
        return safe_relative(str(attempt))
    except (ValueError, KeyError, TypeError, StorageError) as error:
        raise Conflict(
            "OutputConflict", f"{store.place(location).uri} cannot be read ({error}): delete it and run again"
        ) from error


def _point(store: Store, run: S3Location, contract: RunContract) -> Published:
    location = run.child(MANIFEST)
    data = store.read(location)
    if data is None:
        raise Conflict(
            "OutputConflict",
            f"{store.place(run.child(COMMIT)).uri} names an attempt whose files are gone: delete this file and run"
            " again",
        )
    manifest = _parse(data, store.place(location), contract.run_id)
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = LatestPointer(run_id=contract.run_id, sha256=sha256)
    store.put(parse_s3(contract.output_uri).child(LATEST), json.dumps(pointer.to_wire()).encode())
    return Published(run, manifest, sha256)


def _sweep(store: Store, run: S3Location) -> None:
    """Remove what all attempts have left on the way once the manifest stands, and what they have read in place of the
    data; what stays behind does no harm."""
    try:
        if store.head(run.child(MANIFEST)) is None:
            return  # committed and not yet in place: the next attempt needs the files
        for folder in (run.child(STAGING), run.child(LIVE), run.child(TOKENS)):
            for info in list(store.objects(folder)):
                store.delete(folder.child(info.name))
    except StorageError:
        return  # no right to delete, say: the run is published all the same


def run_folder(output_uri: str, run: str) -> S3Location:
    """Return the folder of a run below an output."""
    if not run.isalnum():
        raise StorageError("InvalidContract", f"{run!r} is no run id")
    return parse_s3(output_uri).child(run)


def _parse(data: bytes, place: Place, run: str) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise Conflict(
            "OutputConflict",
            f"{place.uri} is no readable manifest ({'.'.join(map(str, first['loc']))}: {first['msg']}): restore it, or"
            " delete the run's folder to train again",
        ) from error
    if manifest.run_id != run:
        raise Conflict("OutputConflict", f"{place.uri} belongs to run {manifest.run_id}: move it away")
    for file in manifest.files:
        safe_relative(file.path)
    return manifest


def _same_run(data: bytes, contract: RunContract) -> bool:
    """Whether a `run.json` asks for the same result; who asks, when and on which machine may differ."""
    try:
        other = RunContract.model_validate_json(data)
    except ValidationError:
        return False
    ids = {run_id(c.model, c.dataset, c.method, c.objective, c.training, c.start) for c in (other, contract)}
    return len(ids) == 1 and other.run_id == contract.run_id


def _published_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and path of every file below `folder`; nothing from outside gets in through a link."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise StorageError("InternalError", f"{name} is a symbolic link, which is not published")
        if path.is_file():
            if name.partition("/")[0] in _RESERVED:
                raise StorageError("InternalError", f"{name} is a reserved name of the run's folder")
            yield safe_relative(name), path
