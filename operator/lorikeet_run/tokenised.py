"""A run's rows as tokens in files: written before a GPU is asked for, read in place of rendering them again.

The rows of each use lie in parts, so that who writes holds one at a time; an index names them. The set's address is
the sha256 of all that decides its content, so that one of other data, or made otherwise, is never found.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import save_file

from lorikeet_api.base import Model
from lorikeet_api.contract import FileDigest, RunContract, SourceDigest, Template, Use, canonical_json, data_uses
from lorikeet_run import log
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_run.rendered import Rendered, RenderedData
from lorikeet_run.rows import NOTHING, Flat, Rows
from lorikeet_run.tokens import Judged, Pair, Prompted, TokenRow
from lorikeet_storage import StorageError, TokenSets, is_description
from lorikeet_storage.tokens import INDEX

_LIBRARIES: Final = ("jinja2", "tokenizers", "transformers")
_ELSEWHERE: Final = {"train", "eval", "test", "general", "packing"}
"""The fields of a dataset that decide nothing of its rows: where they come from, and what is done with the tokens."""
_ARRAYS: Final = tuple(one.name for one in fields(Flat))
_FRAMES: Final = "frames"
"""Array of a part that has what its rows are but for their tokens, as JSON in UTF-8."""


class Portion(Model):
    """The rows of one use: of one training source, or of all of another use."""

    use: Use
    """What they are for."""
    dropped: int
    """As `Rendered` has it, and the two below."""
    answers: int
    stopped: int
    files: list[FileDigest]
    """Their parts, in order; none where no row is left."""


class Index(Model):
    """`index.json` of a tokenised set, written last."""

    version: Literal["v1"] = "v1"
    """Version of this layout."""
    template: Template
    """The chat template that the rows were rendered with."""
    rows: list[int]
    """How many rows each data source has, as `data_sources` has them."""
    portions: list[Portion]
    """The rows, as `sources.Data.by_use` has them."""

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        return json.dumps(self.to_wire(), indent=1).encode()

    def counted(self, digests: Sequence[SourceDigest]) -> list[SourceDigest]:
        """Return what the data sources are with the number of their rows."""
        return [one.model_copy(update={"rows": rows}) for one, rows in zip(digests, self.rows, strict=True)]


def address(contract: RunContract, data: Sequence[SourceDigest], model: Sequence[FileDigest]) -> str:
    """Return where a run's tokenised set lies: the sha256 of all that decides its content.

    Args:
        contract: the run.
        data: what its data sources are, as `data_sources` has them.
        model: the files of its base model, of which those that describe it count.
    """
    dataset, objective = contract.dataset, contract.objective
    seed = Hyperparameters.of(contract).seed if dataset.eval_fraction is not None else None
    decisive = [
        _code(),
        [version(name) for name in _LIBRARIES],
        sorted([file.path, file.sha256] for file in model if is_description(file.path)),
        [
            [use, [[file.path, file.sha256] for file in source.files]]
            for use, source in zip(data_uses(contract), data, strict=True)
        ],
        dataset.model_dump(mode="json", exclude=_ELSEWHERE, exclude_none=True),
        [objective.name, objective.columns],
        seed,
        contract.date,
    ]
    return hashlib.sha256(canonical_json(decisive)).hexdigest()


@cache
def _code() -> str:
    """Return the sha256 of our own code that renders: the images of agent and trainer may be of two releases."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def write_part(path: Path, rows: Rows[TokenRow]) -> None:
    """Write rows, at least one, to a file."""
    flat = rows.flat
    arrays: dict[str, NDArray[Any]] = {name: getattr(flat, name) for name in _ARRAYS}
    save_file({**arrays, _FRAMES: _pack(rows.frames)}, path)


def read_part(path: Path, into: Rows[TokenRow]) -> None:
    """Add the rows of a file to others."""
    with safe_open(path, framework="numpy") as file:
        flat = Flat(*(file.get_tensor(name) for name in _ARRAYS))
        frames = _unpack(file.get_tensor(_FRAMES), len(flat.trained))
    into.extend(flat, frames)


def _pack(frames: Sequence[TokenRow]) -> NDArray[np.uint8]:
    """Return what rows are but for their tokens."""
    good = [frame.good for frame in frames if isinstance(frame, Judged)]
    columns = [dict(frame.columns) for frame in frames if isinstance(frame, Prompted)]
    told = {"kind": type(frames[0]).__name__, "good": good, "columns": columns}
    return np.frombuffer(json.dumps(told, ensure_ascii=False).encode(), np.uint8)


def _unpack(data: NDArray[np.uint8], count: int) -> Sequence[TokenRow]:
    told = json.loads(data.tobytes())
    match told["kind"]:
        case "Pair":
            return [Pair(NOTHING, NOTHING)] * count
        case "Judged":
            return [Judged(NOTHING, good) for good in told["good"]]
        case "Prompted":
            return [Prompted(NOTHING, columns) for columns in told["columns"]]
        case _:
            return [NOTHING] * count


def fetch(sets: TokenSets, address: str, into: Path) -> Index | None:
    """Bring a set into the folder `into`, and return its index; None if it is not there, or not as it was written.

    Raises StorageError where the store does not answer.
    """
    shutil.rmtree(into, ignore_errors=True)
    data = patiently(lambda: sets.index(address), FETCH_SECONDS)
    if data is None:
        log.event("tokens_absent", message="there is no tokenised set of this very data: it is rendered here")
        return None
    try:
        with log.timed("fetch", what="tokens") as told:
            index = Index.model_validate_json(data)
            files = [file for portion in index.portions for file in portion.files]
            patiently(lambda: sets.fetch(address, files, into), FETCH_SECONDS)
            told["bytes"] = sum(file.size for file in files)
    except (ValidationError, StorageError) as error:
        if isinstance(error, StorageError) and error.retryable:
            raise
        shutil.rmtree(into, ignore_errors=True)
        log.event("tokens_damaged", message=f"{error}; the data is rendered here")
        return None
    into.mkdir(exist_ok=True)
    (into / INDEX).write_bytes(data)
    return index


def read(folder: Path) -> RenderedData:
    """Return what `fetch` has brought into a folder."""
    index = Index.model_validate_json((folder / INDEX).read_bytes())
    by_use = []
    for portion in index.portions:
        rendered = Rendered(dropped=portion.dropped, answers=portion.answers, stopped=portion.stopped)
        for file in portion.files:
            read_part(folder / file.path, rendered.rows)
        by_use.append((portion.use, rendered))
    return RenderedData(index.template, by_use)
