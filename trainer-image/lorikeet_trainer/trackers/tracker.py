"""What all trackers have in common."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from socket import gethostname
from typing import Any

from lorikeet_api.contract import Metrics, RunContract, SourceDigest, canonical_json
from lorikeet_run.report import reproduce
from lorikeet_storage import run_place
from lorikeet_storage.folders import folder_of
from lorikeet_storage.uri import parse_s3
from lorikeet_trainer.points import Point
from lorikeet_trainer.state import Ending, Layout, Prepared


@dataclass(frozen=True)
class Subject:
    """The run that is followed."""

    contract: RunContract
    prepared: Prepared
    layout: Layout

    @cached_property
    def identity(self) -> str:
        """What the run is known by in every tracker, in all of its attempts: 16 hex digits.

        Of the job and of what it trains on. Outside a cluster, of the output in the job's place; where that is a
        folder, of the machine's name, too.
        """
        contract = self.contract
        folder = folder_of(parse_s3(contract.output_uri), "output")
        place = contract.output_uri if folder is None else f"{gethostname()}:{folder.resolve()}"
        owner = contract.job_uid or place
        parts = [owner, contract.run_id, self.prepared.basis(contract.date)]
        return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]

    @property
    def facts(self) -> dict[str, str]:
        """Whose run it is, where it publishes, and what it has read."""
        contract, prepared = self.contract, self.prepared
        return {
            "job": contract.name,
            "namespace": contract.namespace,
            **({"jobUid": contract.job_uid} if contract.job_uid is not None else {}),
            "runId": contract.run_id,
            "output": run_place(contract),
            "model": prepared.model.uri,
            "model.sha256": _sha256(prepared.model),
            **{f"data.{number}": source.uri for number, source in enumerate(prepared.data)},
            **{f"data.{number}.sha256": _sha256(source) for number, source in enumerate(prepared.data)},
        }

    @property
    def configuration(self) -> dict[str, Any]:
        """What decides the result, every value set, in the words of a request."""
        wire = self.contract.to_wire()
        parts = ("model", "start", "dataset", "method", "objective", "training")
        return {**{part: wire[part] for part in parts if part in wire}, "gpus": self.contract.gpus}

    @property
    def request(self) -> str:
        """The FineTuneJob that asks for the same run, as YAML for a repository; else the whole contract."""
        return reproduce.manifest(self.contract) or reproduce.configuration(self.contract)

    @property
    def request_file(self) -> str:
        """Name of a file with the request."""
        return "contract.yaml" if reproduce.manifest(self.contract) is None else "finetunejob.yaml"

    def give(self, folder: Path) -> None:
        """Have a folder published by its name, whole; one that is given when the run has waited long enough is not."""
        whole = self.layout.followed / folder.name
        whole.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(whole)


def _sha256(source: SourceDigest) -> str:
    """Return the sha256 of a source's file; of several, that over their digests."""
    sums = [file.sha256 for file in source.files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def flat(value: Any, path: str = "") -> dict[str, str]:
    """Return the leaves of JSON-able fields by their paths, `training.batchSize`; lists of plain values are leaves."""
    if isinstance(value, dict) and value:
        return {key: leaf for name, each in value.items() for key, leaf in flat(each, _below(path, name)).items()}
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return flat(dict(enumerate(value)), path)
    return {path: value if isinstance(value, str) else canonical_json(value).decode()}


def _below(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def numbers(metrics: Metrics) -> dict[str, float]:
    """Return the run's figures that are numbers, as trackers name them: `final/evalLoss`."""
    told = metrics.to_wire().items()
    return {f"final/{name}": float(value) for name, value in told if type(value) in (int, float)}


class Lost(Exception):
    """What a tracker has not taken is lost: no second try helps."""


class Tracker(ABC):
    """Where a run is followed. Every method may raise whatever its library does, and is then called again; or Lost.

    Called by one thread, in this order; an attempt that is stopped or fails is not finished.
    """

    @abstractmethod
    def begin(self) -> str:
        """Begin the run there, or take it up again; return where a person finds it."""

    @abstractmethod
    def tell(self, points: Sequence[Point]) -> None:
        """Add points. The first ones of an attempt may be there already."""

    @abstractmethod
    def finish(self, metrics: Metrics) -> None:
        """Add the run's figures: it is trained. What is to be published is given to the subject, last."""

    @abstractmethod
    def end(self, ending: Ending) -> None:
        """Say how the attempt has ended."""
