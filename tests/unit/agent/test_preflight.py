"""How much data is made tokens of before a GPU is asked for."""

from typing import Any, cast

import pytest

from lorikeet_agent.preflight import too_large
from lorikeet_api.training import Dataset
from lorikeet_storage import Survey
from lorikeet_storage.sources import Entry, Source

MIB = 1 << 20


def why(*sizes: int, name: str = "a.jsonl", **dataset: Any) -> str | None:
    """Return what is said of sources of one file each."""
    surveys = [Survey(cast(Source, None), "s3://datasets/a", (Entry(name, size),)) for size in sizes]
    return too_large(surveys, Dataset.model_validate({"train": [{"uri": "s3://datasets/a"}], **dataset}))


@pytest.mark.parametrize(("dataset", "most"), [({}, 1024), ({"evalFraction": 0.1}, 256)], ids=["all", "split"])
def test_of_all_data_together_there_is_a_limit_and_a_lower_one_where_a_part_is_held_out(
    dataset: dict[str, Any], most: int
) -> None:
    half = most // 2 * MIB
    assert why(half, half, **dataset) is None
    assert why(half, half, MIB, **dataset) == f"the data has {most + 1} MiB, more than {most}"
    assert why(half, half, 1, **dataset) is not None


@pytest.mark.parametrize(
    ("name", "most"), [("a.jsonl", 1024), ("a.parquet", 64), ("a.json", 16), ("a.csv", 16), ("b/c.csv", 16)]
)
def test_a_file_has_the_limit_of_its_format(name: str, most: int) -> None:
    assert why(most * MIB, name=name) is None
    assert why(most * MIB + 1, name=name) is not None


@pytest.mark.parametrize(("name", "most"), [("a.parquet", 64), ("a.json", 16), ("a.csv", 16)])
def test_a_file_that_is_too_large_is_named_beside_small_ones(name: str, most: int) -> None:
    assert why(MIB, (most + 1) * MIB, name=name) == f"{name} has {most + 1} MiB, more than {most}"
    assert why(*[most * MIB] * 4, name=name, evalFraction=0.1) is None
