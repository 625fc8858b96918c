"""Rows of the format prompt: what is asked, and what answers are measured by."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.training import Dataset
from lorikeet_run.data import read_source
from lorikeet_run.errors import RunError
from lorikeet_run.examples import Prompt

USER, SYSTEM = {"role": "user", "content": "q"}, {"role": "system", "content": "s"}
ANSWER = {"role": "assistant", "content": "a"}
ASKED = [("user", "q")]


def read(folder: Path, *rows: dict[str, Any], reads: tuple[str, ...] = (), **fields: Any) -> list[Prompt]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = Dataset.model_validate({"train": [{"uri": "s3://data/rows.jsonl"}], **fields})
    found = list(read_source([(path, path.name)], dataset, "rlhf", reads))
    return [each for each in found if isinstance(each, Prompt)]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "q"}, ASKED),
        ({"prompt": "q", "system": "s"}, [("system", "s"), *ASKED]),
        ({"prompt": [USER]}, ASKED),
        ({"prompt": [SYSTEM, USER, ANSWER, USER]}, [("system", "s"), *ASKED, ("assistant", "a"), *ASKED]),
    ],
    ids=["text", "system", "messages", "several turns"],
)
def test_a_prompt(tmp_path: Path, row: dict[str, Any], turns: list[tuple[str, str]]) -> None:
    (prompt,) = read(tmp_path, row)
    assert [(turn.role, turn.content) for turn in prompt.asked.messages] == turns
    assert prompt.asked.asks


def test_columns_that_rewards_read_are_kept_as_text_and_no_others(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "answer": value, "note": "x"} for value in ("blue ", 12, 0.5, True)]
    kept = [prompt.columns for prompt in read(tmp_path, *rows, reads=("answer",))]
    assert kept == [{"answer": "blue "}, {"answer": "12"}, {"answer": "0.5"}, {"answer": "true"}]


def test_other_names_are_mapped(tmp_path: Path) -> None:
    names = {"format": "prompt", "columns": {"prompt": "question", "tools": "functions"}}
    (prompt,) = read(tmp_path, {"question": "q", "tools": "none of ours"}, reads=("question",), **names)
    assert prompt.columns == {"question": "q"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "answer": "a"}, "takes no rows with these columns: question, answer; needed are prompt"),
        ({"prompt": " ", "answer": "a"}, "column prompt is empty"),
        ({"prompt": None, "answer": "a"}, "column prompt is"),
        ({"prompt": [USER, ANSWER], "answer": "a"}, "ends with a turn of the assistant: it must end with a user's"),
        ({"prompt": [ANSWER, USER], "answer": "a"}, "must begin with a user's turn"),
        ({"prompt": "q"}, "no column answer, which a match of objective.rlhf.rewards reads; found: prompt"),
        ({"prompt": "q", "answer": ["a"]}, "column answer is a list"),
        ({"prompt": "q", "answer": None}, "column answer is"),
    ],
)
def test_a_wrong_row_is_named_with_what_is_wrong(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words) as refused:
        read(tmp_path, row, reads=("answer",))
    assert "rows.jsonl" in refused.value.message
