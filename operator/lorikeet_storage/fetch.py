"""Bring a model or a data set into the pod, with the digest of every file."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from lorikeet_api.contract import FileDigest, SourceDigest, StorageAccess, canonical_json
from lorikeet_api.training import HUB, DataSource, ModelSource
from lorikeet_storage import splits
from lorikeet_storage.errors import StorageError
from lorikeet_storage.sources import Entry, Source, open_source
from lorikeet_storage.uri import HubLocation, parse

DATA_ENDINGS: Final = (".jsonl", ".json", ".csv", ".parquet")
_MODEL_ENDINGS: Final = (".json", ".model", ".jinja", ".txt", ".tiktoken")
_WEIGHTS: Final = ".safetensors"
_INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class Fetched:
    """A source in the pod."""

    path: Path
    """Folder of the files; for a model what `from_pretrained` takes."""
    files: tuple[Path, ...]
    """The files below it, in the order of `digest.files`."""
    digest: SourceDigest
    """Where it came from and what it was: URI, resolved revision, each file's path, sha256 and size."""


@dataclass(frozen=True)
class Survey:
    """What lies at a source, before any of it is fetched."""

    origin: Source
    uri: str
    entries: tuple[Entry, ...]
    """The files that a run reads, in the order of their names."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)

    @property
    def pin(self) -> str:
        """The commit of the hub, or the sha256 over the files' names, sizes and versions."""
        listing = [[entry.name, entry.size, entry.version] for entry in self.entries]
        return self.origin.revision or hashlib.sha256(canonical_json(listing)).hexdigest()


def survey_model(source: ModelSource, access: StorageAccess, pin: str | None = None) -> Survey:
    """Look at a transformers model: weights, configuration, tokenizer, chat template.

    Raises StorageError: ModelNotFound if nothing is there, ModelInvalid if it is no such model, SourceChanged if it is
    not what `pin` says, StorageRefused or StorageUnreachable if it cannot be read.
    """
    location = parse(source.uri)
    if isinstance(location, HubLocation) and location.path:
        raise StorageError("InvalidContract", f"{source.uri}: a model is a whole repository, hf://organisation/name")
    origin = open_source(location, "model", access, _revision(source, pin))
    found = origin.entries(recursive=False)
    _check_model(origin, {entry.name for entry in found})
    used = tuple(entry for entry in found if entry.name.endswith((*_MODEL_ENDINGS, _WEIGHTS)))
    return _pinned(Survey(origin, source.uri, used), pin)


def survey_data(source: DataSource, access: StorageAccess, pin: str | None = None) -> Survey:
    """Look at one file, or all .jsonl, .json, .csv and .parquet files of a folder.

    Hidden files and folders (`.x`, `_x`) and empty files are left out; of a whole repository of the hub one subset and
    split is taken, and the splits of a folder there do not mix. Raises StorageError: DataNotFound if nothing is
    there, DataInvalid if no file of a known kind has content, SourceChanged if it is not what `pin` says,
    StorageRefused or StorageUnreachable if it cannot be read.
    """
    location = parse(source.uri)
    origin = open_source(location, "data", access, _revision(source, pin))
    found = origin.entries(recursive=True)
    if not found:
        raise origin.place.missing(
            f"{origin.place.uri} does not exist or is an empty folder: upload the data or correct it"
        )
    kept = [entry for entry in found if entry.name.endswith(DATA_ENDINGS) and not _hidden(entry.name)]
    if not kept:
        raise origin.place.invalid(
            f"{origin.place.uri} holds no {', '.join(DATA_ENDINGS)} file, only {_some(e.name for e in found)}"
        )
    if isinstance(location, HubLocation):
        kept = (
            splits.folder(origin, location.path, kept) if location.path else splits.whole(source, origin, kept, found)
        )
    kept = [entry for entry in kept if entry.size]
    if not kept:
        raise origin.place.invalid(f"{origin.place.uri} is empty (0 bytes): upload the examples again")
    return _pinned(Survey(origin, source.uri, tuple(kept)), pin)


def _revision(source: DataSource | ModelSource, pin: str | None) -> str | None:
    return pin if pin is not None and source.uri.startswith(HUB) else source.revision


def _pinned(survey: Survey, pin: str | None) -> Survey:
    if pin is not None and survey.pin != pin:
        raise StorageError(
            "SourceChanged",
            f"{survey.uri} is not what it was when the run was checked: put it back as it was, or create a new"
            " FineTuneJob to train on what is there now",
        )
    return survey


def fetch_description(survey: Survey, into: Path) -> list[FileDigest]:
    """Bring what describes a model (configuration, tokenizer, chat template) into the folder `into`; no weights."""
    into.mkdir(parents=True, exist_ok=True)
    return survey.origin.fetch([entry for entry in survey.entries if is_description(entry.name)], into)


def is_description(name: str) -> bool:
    """Return whether a model's file is of what describes it, as `fetch_description` brings it."""
    return name.endswith(_MODEL_ENDINGS)


def fetch_model(source: ModelSource, into: Path, access: StorageAccess, pin: str | None = None) -> Fetched:
    """Bring a transformers model into the folder `into`.

    Only safetensors are taken, never pickles; where an index names the shards, only those. Files of a claim are linked,
    not copied. Raises StorageError as `survey_model` does.
    """
    survey = survey_model(source, access, pin)
    digests = fetch_description(survey, into)
    shards = _shards(survey.origin, {entry.name for entry in survey.entries}, into)
    digests += survey.origin.fetch([entry for entry in survey.entries if entry.name in shards], into)
    return _fetched(survey, into, digests)


def fetch_data(source: DataSource, into: Path, access: StorageAccess, pin: str | None = None) -> Fetched:
    """Bring a data source's files into the folder `into`. Raises StorageError as `survey_data` does."""
    survey = survey_data(source, access, pin)
    into.mkdir(parents=True, exist_ok=True)
    return _fetched(survey, into, survey.origin.fetch(survey.entries, into))


def _fetched(survey: Survey, into: Path, files: list[FileDigest]) -> Fetched:
    digest = SourceDigest(uri=survey.uri, revision=survey.origin.revision, files=files)
    return Fetched(into, tuple(into / file.path for file in files), digest)


def _check_model(origin: Source, names: set[str]) -> None:
    place = origin.place
    if not names:
        raise place.missing(
            f"{place.uri} does not exist or is an empty folder: upload the model or correct {place.field}"
        )
    if "config.json" not in names:
        adapter = "; this is an adapter, name its base model" if "adapter_config.json" in names else ""
        raise place.invalid(
            f"{place.uri} is a model path without a config: config.json is missing, found {_some(names)}{adapter}"
        )
    if not any(name.endswith(_WEIGHTS) for name in names):
        raise place.invalid(
            f"{place.uri} has no .safetensors file, found {_some(names)}: only safetensors are loaded, since pickles"
            " (.bin, .pt) can run code; save the model again with safe_serialization"
        )


def _shards(origin: Source, names: set[str], folder: Path) -> set[str]:
    """Return the weight files that transformers would load, so that a second copy of them is not fetched."""
    weights = {name for name in names if name.endswith(_WEIGHTS)}
    if "model.safetensors" in names:
        return {"model.safetensors"}
    if _INDEX not in names:
        return weights
    try:
        shards = {str(name) for name in json.loads((folder / _INDEX).read_bytes())["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise origin.place.invalid(
            f"{_INDEX} of {origin.place.uri} cannot be read ({error!r}): upload it again"
        ) from error
    if absent := shards - weights:
        raise origin.place.invalid(
            f"{origin.place.uri} is incomplete: {_INDEX} names {_some(absent)}, not there: upload the missing files"
        )
    return shards


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)


def _some(names: Iterable[str], limit: int = 8) -> str:
    """Return the first names of a list for a message."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more
