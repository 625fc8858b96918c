"""The demo's data: the same bytes each time, and a held-out set that no memory answers."""

import importlib.util
import json
import re
import sqlite3
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "text-to-sql" / "make_data.py"


@pytest.fixture(scope="module")
def data() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_data"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_runs_write_the_same_bytes(data: ModuleType, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in data.write(tmp_path / "a")]
    second = [path.read_bytes() for path in data.write(tmp_path / "b")]
    assert first == second
    assert [len(lines.splitlines()) for lines in first] == [400, 400, 60]


def test_no_table_and_no_column_of_the_held_out_set_is_in_a_training_row(data: ModuleType, tmp_path: Path) -> None:
    train, _, heldout = data.write(tmp_path)
    words = set(re.findall(r"\w+", train.read_text().lower()))
    for table in data.HELDOUT_TABLES:
        names = {table.name, *table.numbers, *table.words}
        assert not names & words
        assert any(f"FROM {table.name}" in row["completion"] for row in rows(heldout)), "and it is asked about"


def test_rows_are_unique_and_short(data: ModuleType, tmp_path: Path) -> None:
    for path in data.write(tmp_path):
        prompts = [row["prompt"] for row in rows(path)]
        assert len(set(prompts)) == len(prompts)
        assert all(set(row) == {"prompt", "completion"} for row in rows(path))
        assert max(len(line) for line in path.read_text().splitlines()) < 160


def test_every_query_runs(data: ModuleType, tmp_path: Path) -> None:
    database = sqlite3.connect(":memory:")
    for table in (*data.TRAIN_TABLES, *data.HELDOUT_TABLES):
        columns = ", ".join((*table.numbers, *table.words))
        database.execute(f"CREATE TABLE {table.name} ({columns})")
    for path in data.write(tmp_path):
        for row in rows(path):
            database.execute(row["completion"])
