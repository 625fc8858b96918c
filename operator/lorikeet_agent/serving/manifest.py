"""What an adapter's manifest must say for the engine of this pod to take the adapter."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from lorikeet_agent.serving.contracts import first_error
from lorikeet_agent.serving.errors import AdapterError
from lorikeet_agent.serving.settings import DIGEST
from lorikeet_api.contract import FileDigest, Manifest, SourceDigest
from lorikeet_api.serving import AdapterRevision, EngineContract
from lorikeet_storage.publish import MANIFEST
from lorikeet_storage.s3 import S3
from lorikeet_storage.uri import is_safe, parse_s3

WEIGHTS: Final = ".safetensors"
CONFIG: Final = "adapter_config.json"
_FOLDER: Final = "adapter/"


def read_manifest(store: S3, revision: AdapterRevision) -> bytes:
    """Return the pinned manifest's bytes. Raises AdapterError (ManifestMissing, ManifestDiffers) and StorageError."""
    location = parse_s3(revision.uri).child(MANIFEST)
    content = store.read(location)
    if content is None:
        raise AdapterError(
            "ManifestMissing",
            f"{location} does not exist: restore the run's folder, or name another run in spec.adapters[].from",
        )
    if (found := hashlib.sha256(content).hexdigest()) != revision.sha256:
        raise AdapterError(
            "ManifestDiffers",
            f"{location} has sha256 {found}, pinned is {revision.sha256}: restore it, or pin what is there now",
        )
    return content


def parse_manifest(content: bytes, revision: AdapterRevision) -> Manifest:
    """Return the manifest. Raises AdapterError (ManifestInvalid)."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise _invalid(revision, first_error(error)) from error
    if unsafe := [file.path for file in manifest.files if not is_safe(file.path)]:
        raise _invalid(revision, f"{unsafe[0]!r} is not a plain relative path")
    return manifest


def adapter_files(manifest: Manifest, revision: AdapterRevision) -> dict[str, FileDigest]:
    """Return the files that an engine needs, by their names in the adapter's folder; no pickle is among them.

    Raises AdapterError (NotServable).
    """
    named = {file.path.removeprefix(_FOLDER): file for file in manifest.files if file.path.startswith(_FOLDER)}
    taken = {
        name: file
        for name, file in named.items()
        if "/" not in name and not name.startswith(".") and name.endswith((WEIGHTS, ".json"))
    }
    if CONFIG not in taken or not any(name.endswith(WEIGHTS) for name in taken):
        raise AdapterError(
            "NotServable",
            f"{revision.uri} has no {_FOLDER}{CONFIG} with a {WEIGHTS} file beside it: only safetensors are loaded,"
            " since pickles can run code; publish the adapter again",
        )
    return taken


def check_fit(manifest: Manifest, revision: AdapterRevision, contract: EngineContract, model: Path) -> None:
    """Raise AdapterError unless the engine can take the adapter: NotServable, RankTooHigh, BaseModelDiffers."""
    if manifest.kind != "adapter" or not manifest.servable.lora:
        why = manifest.servable.reason or f"it is a {manifest.kind}, no LoRA adapter"
        raise AdapterError("NotServable", f"{revision.uri} cannot be served on a base model ({why}): name another run")
    if manifest.rank is not None and manifest.rank > contract.max_lora_rank:
        raise AdapterError(
            "RankTooHigh",
            f"{revision.uri} has rank {manifest.rank}, the engine takes at most {contract.max_lora_rank}: raise"
            f" spec.engine.{contract.engine}.maxLoraRank",
        )
    base = read_digest(model)
    if _weights(base.files) != _weights(manifest.base_model.files):
        raise AdapterError(
            "BaseModelDiffers",
            f"{revision.uri} was trained on {manifest.base_model.uri}, whose weights are not those of {base.uri} in"
            " this pod: serve it on the model that it was trained on, or train it on this one",
        )


def read_digest(model: Path) -> SourceDigest:
    """Return what the base model in a folder is, as it was fetched. Raises OSError and ValueError."""
    return SourceDigest.model_validate_json((model / DIGEST).read_bytes())


def _weights(files: Iterable[FileDigest]) -> list[str]:
    return sorted(file.sha256 for file in files if file.path.endswith(WEIGHTS))


def _invalid(revision: AdapterRevision, why: str) -> AdapterError:
    return AdapterError(
        "ManifestInvalid",
        f"{revision.uri}/{MANIFEST} is no manifest of this release ({why}): publish the adapter again",
    )
