"""`lorikeet-agent resolve`: finds out what the URIs of a ModelDeployment mean, with the namespace's credentials."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from lorikeet_agent.serving.errors import AdapterError, failure_of
from lorikeet_api.contract import TERMINATION_LIMIT, LatestPointer
from lorikeet_api.serving import Found, ResolveContract, ResolveRecord, Unresolved
from lorikeet_run import log
from lorikeet_run.errors import RunError
from lorikeet_run.patience import patiently
from lorikeet_storage import StorageError, survey_model
from lorikeet_storage.publish import LATEST, MANIFEST
from lorikeet_storage.s3 import S3
from lorikeet_storage.uri import S3Location, parse_s3

PATIENCE: Final = 3.0
"""Seconds in which a store may come back; after that the pod is made again."""
_TEXT: Final = 320
"""Characters of a message about an adapter."""
_WHOLE: Final = 600
"""Characters of the record's own message."""


def resolve(contract: ResolveContract, patience_seconds: float = PATIENCE) -> ResolveRecord:
    """Return what model and adapters are. Raises StorageError if the model is not there, or a store is away."""
    pin = ""
    if (model := contract.model) is not None:
        pin = patiently(lambda: survey_model(model, contract.storage), patience_seconds).pin
    found = [patiently(partial(_find, contract, each), patience_seconds) for each in contract.adapters]
    missing = sum(bool(each.reason) for each in found)
    return ResolveRecord(
        reason="Resolved", message=f"{len(found) - missing} of {len(found)} adapters found", pin=pin, adapters=found
    )


def failed(error: RunError) -> ResolveRecord:
    """Return the record of a failure."""
    told = error.record()
    return ResolveRecord(reason=told.reason, message=_cut(told.message, _WHOLE), retryable=told.retryable)


def write(record: ResolveRecord, path: Path) -> None:
    """Write the termination message; without a place for it (outside a pod) the log has it all the same."""
    try:
        path.write_bytes(to_message(record))
    except OSError as error:
        log.event("record", message=f"the termination message could not be written: {error}")


def to_message(record: ResolveRecord) -> bytes:
    """Return the record as JSON of at most TERMINATION_LIMIT bytes; its texts are shortened as far as that needs."""
    for limit in range(_WHOLE, -1, -20):
        adapters = [
            each.model_copy(update={"message": _cut(each.message, min(limit, _TEXT))}) for each in record.adapters
        ]
        shorter = record.model_copy(update={"message": _cut(record.message, limit), "adapters": adapters})
        message = json.dumps(shorter.to_wire(), ensure_ascii=False).encode()
        if len(message) <= TERMINATION_LIMIT:
            return message
    raise ValueError("the record is too long even without any text")


def _find(contract: ResolveContract, ask: Unresolved) -> Found:
    """Return what an adapter is, or why it is nothing. Raises StorageError if the store is away."""
    try:
        run_id, sha256 = _look_up(S3(contract.storage, "model"), ask)
    except (AdapterError, StorageError) as error:
        if isinstance(error, StorageError) and error.retryable:
            raise
        failure = failure_of(error)
        return Found(name=ask.name, reason=failure.reason, message=_cut(failure.message, _TEXT))
    log.event("resolved", adapter=ask.name, run_id=run_id, sha256=sha256)
    return Found(name=ask.name, run_id=run_id, sha256=sha256)


def _look_up(store: S3, ask: Unresolved) -> tuple[str, str]:
    """Return the run's folder below the URI (empty: the URI is that) and the manifest's sha256. Raises AdapterError."""
    top = parse_s3(ask.uri)
    if (sha256 := _digest(store, top)) is not None:
        if ask.sha256 in (None, sha256):
            return "", sha256
        raise _differs(f"{top}/{MANIFEST} has sha256 {sha256}", ask)
    if ask.sha256 is None:
        return _newest(store, top)
    with suppress(AdapterError):  # which would not matter
        newest = _newest(store, top)
        if newest[1] == ask.sha256:
            return newest
    runs = list(_runs(store, top))
    for run_id in runs:
        if _digest(store, top.child(run_id)) == ask.sha256:
            return run_id, ask.sha256
    raise _differs(f"{top} has {len(runs)} runs", ask) if runs else _missing(top)


def _digest(store: S3, folder: S3Location) -> str | None:
    content = store.read(folder.child(MANIFEST))
    return None if content is None else hashlib.sha256(content).hexdigest()


def _newest(store: S3, top: S3Location) -> tuple[str, str]:
    """Return the run that `latest.json` names, and its manifest's sha256. Raises AdapterError."""
    location = top.child(LATEST)
    content = store.read(location)
    if content is None:
        raise _missing(top)
    try:
        pointer = LatestPointer.model_validate_json(content)
    except ValidationError:
        pointer = None
    if pointer is None or not pointer.run_id.isalnum():
        raise AdapterError("ManifestInvalid", f"{location} names no run: name the run's own folder, or publish again")
    folder = top.child(pointer.run_id)
    sha256 = _digest(store, folder)
    if sha256 is None:
        raise AdapterError(
            "ManifestMissing", f"{location} names {folder}, which has no {MANIFEST}: restore it, or publish again"
        )
    if sha256 != pointer.sha256:
        raise AdapterError(
            "ManifestDiffers", f"{folder}/{MANIFEST} is not the one that {LATEST} names: restore it, or publish again"
        )
    return pointer.run_id, sha256


def _runs(store: S3, top: S3Location) -> Iterator[str]:
    for info in store.objects(top):
        run_id, _, name = info.name.partition("/")
        if name == MANIFEST and run_id.isalnum():
            yield run_id


def _missing(top: S3Location) -> AdapterError:
    return AdapterError(
        "ManifestMissing",
        f"{top} has neither {MANIFEST} nor {LATEST}: publish an adapter there, or correct spec.adapters[].from.uri",
    )


def _differs(found: str, ask: Unresolved) -> AdapterError:
    return AdapterError(
        "ManifestDiffers",
        f"no manifest of sha256 {ask.sha256} is there ({found}): correct spec.adapters[].from, or restore the run",
    )


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + "…"[:limit]
