"""Renders every row of a run before a GPU is asked for, and leaves the tokens where the trainer finds them."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from lorikeet_api.contract import FileDigest, RunContract, Template, Use
from lorikeet_run import log
from lorikeet_run.errors import RunError
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_run.render import renderers
from lorikeet_run.rendered import Counts, check
from lorikeet_run.sources import Data, check_sources, fetch_sources, read_data
from lorikeet_run.tokenised import Index, Portion, address, write_part
from lorikeet_run.tokenizer import limits, load_tokenizer
from lorikeet_storage import StorageError, TokenSets

PART_ROWS: Final = 8192
"""Rows of a part, about, which are all that is held at a time."""
PART_CHARACTERS: Final = 1 << 22
"""Characters of a part, about, of longer rows."""


def tokenise(
    contract: RunContract, pins: Sequence[str], model: Path, described: list[FileDigest], folder: Path
) -> Index:
    """Look at every row of a run's data as the trainer would, render it, and store the tokens, unless they are there.

    Args:
        contract: the run.
        pins: what its data sources were when they were looked at.
        model: where the files are that describe its base model.
        described: what they are.
        folder: for the data, and for a part of the tokens.

    Returns:
        The index of the stored set.

    Raises:
        RunError, StorageError: as the trainer would.
    """
    sets, sources = TokenSets(contract), folder / "data"
    digests = fetch_sources(contract, sources, pins)
    place = address(contract, digests, described)
    there = patiently(lambda: sets.index(place), FETCH_SECONDS)
    with suppress(ValidationError):  # one that cannot be read is written anew
        return Index.model_validate_json(there or b"")
    digests = check_sources(contract, sources, digests)
    with log.timed("tokenise", address=place) as told:
        try:
            template, portions = _render(contract, model, read_data(contract, sources, digests), sets, place, folder)
        except RunError:
            # No set comes of this data, whichever pod of the run makes it; nobody reads what has no index.
            with suppress(StorageError):
                sets.remove(place)
            raise
        index = Index(template=template, rows=[one.rows or 0 for one in digests], portions=portions)
        patiently(lambda: sets.finish(place, index.to_bytes()), FETCH_SECONDS)
        told |= {"rows": sum(index.rows), "bytes": sum(file.size for one in portions for file in one.files)}
    return index


def _render(
    contract: RunContract, model: Path, data: Data, sets: TokenSets, place: str, folder: Path
) -> tuple[Template, list[Portion]]:
    """Render all rows and store them, a part at a time; find out whether the run can begin with them."""
    positions, vocabulary = limits(model)
    template, by = renderers(contract, model, load_tokenizer(model), data.by_use)
    portions: list[Portion] = []
    counted: list[tuple[Use, Counts]] = []
    for number, (use, rows) in enumerate(data.by_use):
        counts, files = Counts(), list[FileDigest]()
        for part in by[use].render_in_parts(rows, PART_ROWS, PART_CHARACTERS):
            counts += part.counts
            if part.rows:
                path = folder / f"{number}-{len(files):06d}.safetensors"
                write_part(path, part.rows)
                files.append(patiently(partial(sets.save, place, path), FETCH_SECONDS))
                path.unlink()
        counted.append((use, counts))
        portions.append(
            Portion(use=use, dropped=counts.dropped, answers=counts.answers, stopped=counts.stopped, files=files)
        )
    check(contract, counted, positions, vocabulary)
    return template, portions
