"""Columns by other names: each role of each format may have one."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.objectives import ObjectiveName
from lorikeet_api.training import FORMAT_COLUMNS, Columns, Dataset
from lorikeet_run.data import read_source
from lorikeet_run.errors import RunError

TURNS = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "No."}]
TOOLS = [{"name": "weather", "description": "Today's weather", "parameters": {"type": "object", "properties": {}}}]
ROWS: dict[str, tuple[ObjectiveName, dict[str, Any]]] = {
    "instruction": ("sft", {"instruction": "Add", "input": "1 1", "output": "2", "system": "Be brief."}),
    "chat": ("sft", {"messages": TURNS, "system": "Be brief.", "tools": TOOLS}),
    "completion": ("sft", {"prompt": "q", "completion": "a", "system": "Be brief."}),
    "text": ("sft", {"text": "once"}),
    "preference": ("dpo", {"prompt": "q", "chosen": "a", "rejected": "b", "system": "Be brief.", "tools": TOOLS}),
    "feedback": ("kto", {"prompt": "q", "completion": "a", "label": True, "system": "Be brief.", "tools": TOOLS}),
    "prompt": ("rlhf", {"prompt": "q", "system": "Be brief.", "tools": TOOLS}),
}
"""Of each format its objective, and a row with all that it may have."""

OPTIONAL = {"input", "system", "tools"}
ROLES = [(data_format, role) for data_format, roles in FORMAT_COLUMNS.items() for role in roles]


def test_every_format_and_role_is_here() -> None:
    assert {name: set(row) for name, (_, row) in ROWS.items()} == {n: set(r) for n, r in FORMAT_COLUMNS.items()}
    assert {role for _, role in ROLES} == set(Columns.model_fields)


def read(folder: Path, objective: ObjectiveName, row: dict[str, Any], **columns: str) -> Any:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    dataset = Dataset.model_validate({"train": [{"uri": "s3://data/rows.jsonl"}], "columns": columns})
    (example,) = read_source([(path, path.name)], dataset, objective)
    return example


@pytest.mark.parametrize(("data_format", "role"), ROLES)
def test_a_role_is_read_from_the_column_that_is_named(tmp_path: Path, data_format: str, role: str) -> None:
    objective, row = ROWS[data_format]
    usual = read(tmp_path, objective, row)
    renamed = {"of another name" if name == role else name: value for name, value in row.items()}
    named = read(tmp_path, objective, renamed, **{role: "of another name"})
    assert named == usual
    if role in OPTIONAL:
        assert read(tmp_path, objective, renamed) != usual
    else:
        with pytest.raises(RunError, match="column"):
            read(tmp_path, objective, renamed)
