"""Many rows in little memory: what comes out is what went in, and how much a row takes."""

import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lorikeet_api.training import Dataset
from lorikeet_run.batches import ahead
from lorikeet_run.data import Source
from lorikeet_run.examples import Example, Instances
from lorikeet_run.mixture import mix, split
from lorikeet_run.rows import Epoch, Rows
from lorikeet_run.tokens import IGNORED, Judged, Pair, Prompted, TokenRow, Tokens

MANY = 20_000
LENGTH = 100
KINDS: dict[str, Callable[[int], TokenRow]] = {
    "sft": lambda number: tokens(number + 1),
    "dpo": lambda number: Pair(tokens(number + 1), tokens(2 * number + 1)),
    "kto": lambda number: Judged(tokens(number + 1), good=number % 2 == 0),
    "rlhf": lambda number: Prompted(tokens(number + 1), {"answer": str(number)}),
}


def tokens(length: int) -> Tokens:
    ids = np.arange(length, dtype=np.int32) + 1000
    return Tokens(ids, np.where(np.arange(length) < length // 2, IGNORED, ids).astype(np.int32))


def collected(some: list[TokenRow]) -> Rows[TokenRow]:
    rows = Rows[TokenRow]()
    for row in some:
        rows.append(row)
    return rows


def plain(row: TokenRow) -> object:
    """Return what can be compared."""
    parts = [(part.input_ids.tolist(), part.labels.tolist()) for part in row.parts]
    return type(row), parts, getattr(row, "good", None), getattr(row, "columns", None)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_out_as_they_went_in(kind: str) -> None:
    some = [KINDS[kind](number) for number in range(20)]
    rows = collected(some)
    assert [plain(row) for row in rows] == [plain(row) for row in some]
    assert [plain(row) for row in (rows[-1], *rows[3:5])] == [plain(row) for row in (some[-1], *some[3:5])]
    assert rows.lengths.tolist() == [max(len(part.input_ids) for part in row.parts) for row in some]
    assert rows.trained.tolist() == [row.trained for row in some]
    with pytest.raises(IndexError):
        rows[20]


def test_an_epoch_has_the_rows_that_were_chosen_in_their_order() -> None:
    sources = [collected([tokens(number + 1) for number in range(first, first + 5)]) for first in (0, 100, 200)]
    chosen = mix([5, 5, 5], [3.0, 1.0, 1.0], seed=1)
    epoch = Epoch.of(sources, chosen)
    expected = [sources[source][number] for source, number in chosen]
    assert [plain(row) for row in epoch] == [plain(row) for row in expected]
    assert epoch.trained == sum(row.trained for row in expected)
    everything = [plain(row) for rows in sources for row in rows]
    assert [everything[place] for place in epoch.places] == [plain(row) for row in expected]


def test_a_row_takes_little_more_than_its_tokens() -> None:
    tracemalloc.start()
    try:
        rows = Rows[TokenRow]()
        for _ in range(MANY):
            rows.append(tokens(LENGTH))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(rows) == MANY
    # Ids and labels of 4 bytes each, 24 for the row, and what arrays keep to grow, a sixteenth.
    assert held / MANY < 1.125 * (8 * LENGTH + 24)


def alive() -> int:
    return sum(type(each) is Example for each in gc.get_objects())


def test_neither_a_source_nor_its_split_holds_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(1000)))
    dataset = Dataset.model_validate({"train": [{"uri": "s3://data/rows.jsonl"}]})
    source = Source([(path, path.name)], dataset, "sft", (), 1000)
    before = alive()
    parts = split([source], 0.1, seed=1)
    sides: list[Instances] = [source, *parts.train, parts.held_out]
    assert [len(side) for side in sides] == [1000, 900, 100]
    for side in sides:
        (held,) = [alive() - before for number, _ in enumerate(side) if number == 99]
        assert held <= 2
    assert {row.text for row in parts.held_out if isinstance(row, Example)} == {
        row.text for row in source if isinstance(row, Example)
    } - {row.text for row in parts.train[0] if isinstance(row, Example)}


def test_what_is_made_ahead_comes_in_order_and_fails_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    made = ahead(items())
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(made)
