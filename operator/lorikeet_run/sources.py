"""A run's data in a folder: its sources, and the examples that each use has of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorikeet_api.contract import RunContract, SourceDigest, Use, data_sources, data_uses, read_as
from lorikeet_api.training import DataSource
from lorikeet_run import log
from lorikeet_run.data import Source
from lorikeet_run.examples import Instances
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.mixture import check_split, split
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_storage import fetch_data


def fetch_sources(contract: RunContract, folder: Path, pins: Sequence[str] | None) -> list[SourceDigest]:
    """Bring the data sources into folders below one, and return what they are: no row is read yet.

    `pins` are what they were when they were looked at. Raises StorageError.
    """
    return [
        _fetch(contract, source, folder / str(index), pins[index] if pins else None)
        for index, source in enumerate(data_sources(contract))
    ]


def _fetch(contract: RunContract, source: DataSource, folder: Path, pin: str | None) -> SourceDigest:
    with log.timed("fetch", what="data", uri=source.uri) as told:
        fetched = patiently(lambda: fetch_data(source, folder, contract.storage, pin), FETCH_SECONDS)
        told["bytes"] = sum(file.size for file in fetched.digest.files)
    return fetched.digest


def check_sources(contract: RunContract, folder: Path, digests: Sequence[SourceDigest]) -> list[SourceDigest]:
    """Look at every row of every source, one at a time, as they may be larger than memory; return how many there are.

    Raises RunError (DataInvalid).
    """
    counted = []
    for digest, source in zip(digests, _sources(contract, folder, digests), strict=True):
        with log.timed("check", what="data", uri=digest.uri) as told:
            told["rows"] = rows = sum(1 for _ in source)
        counted.append(digest.model_copy(update={"rows": rows}))
    if contract.dataset.eval_fraction is not None:
        read = zip(data_uses(contract), _sources(contract, folder, counted), strict=True)
        check_split(example for use, source in read if use == "training" for example in source)
    return counted


@dataclass(frozen=True)
class Data:
    """The run's examples, which are read whenever they are gone through."""

    train: Sequence[Instances]
    """Those of each training source."""
    held_out: Instances
    test: Instances
    general: Instances

    @property
    def by_use(self) -> list[tuple[Use, Instances]]:
        """All of them, by what they are for; what is not there is left out."""
        others: list[tuple[Use, Instances]] = [
            ("evaluation", self.held_out),
            ("test", self.test),
            ("general", self.general),
        ]
        trained: list[tuple[Use, Instances]] = [("training", rows) for rows in self.train]
        return [*trained, *((use, rows) for use, rows in others if rows)]


def read_data(contract: RunContract, folder: Path, digests: Sequence[SourceDigest]) -> Data:
    """Return the run's examples, of the files that `fetch_sources` has brought and `check_sources` has counted."""
    uses, sources = data_uses(contract), _sources(contract, folder, digests)
    train: Sequence[Instances] = [source for use, source in zip(uses, sources, strict=True) if use == "training"]
    by_use: dict[Use, Instances] = dict(zip(uses, sources, strict=True))
    held_out = by_use.get("evaluation", [])
    if contract.dataset.eval_fraction is not None:
        parts = split(train, contract.dataset.eval_fraction, Hyperparameters.of(contract).seed)
        train, held_out = parts.train, parts.held_out
    return Data(train, held_out, by_use.get("test", []), by_use.get("general", []))


def _sources(contract: RunContract, folder: Path, digests: Sequence[SourceDigest]) -> list[Source]:
    found = []
    for index, (use, digest) in enumerate(zip(data_uses(contract), digests, strict=True)):
        by, files = read_as(contract, use), [(folder / str(index) / file.path, file.path) for file in digest.files]
        found.append(Source(files, by.dataset, by.objective.name, by.objective.columns, digest.rows or 0))
    return found
