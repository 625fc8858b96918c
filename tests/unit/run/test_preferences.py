"""Rows that compare or judge answers: every shape that they have, and every way in which they are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.objectives import ObjectiveName
from lorikeet_api.training import Dataset
from lorikeet_run.data import read_source
from lorikeet_run.errors import RunError
from lorikeet_run.mixture import split

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
USER = {"role": "user", "content": "q"}
GOOD, BAD = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


def read(folder: Path, objective: ObjectiveName, *rows: dict[str, Any], **fields: Any) -> list[Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = Dataset.model_validate({"train": [{"uri": "s3://data/rows.jsonl"}], **fields})
    return list(read_source([(path, path.name)], dataset, objective))


def said(example: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


ASKED = [("user", "q")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ASKED),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"}, [("system", "s"), *ASKED]),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, ASKED),
        ({"prompt": [SYSTEM, USER], "chosen": "a", "rejected": [BAD]}, [("system", "s"), *ASKED]),
        ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, ASKED),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, ASKED),
        (
            {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
            [*ASKED, ("assistant", "a"), *ASKED],
        ),
    ],
    ids=["texts", "system", "messages", "mixed", "whole conversations", "without a prompt", "several turns"],
)
@pytest.mark.parametrize("objective", ["dpo", "orpo", "reward"])
def test_a_preference(
    tmp_path: Path, objective: ObjectiveName, row: dict[str, Any], prompt: list[tuple[str, str]]
) -> None:
    (pair,) = read(tmp_path, objective, row)
    assert said(pair.chosen) == [*prompt, ("assistant", "a")]
    assert said(pair.rejected) == [*prompt, ("assistant", "b")]


@pytest.mark.parametrize(("label", "good"), [(True, True), (False, False), (1, True), (0, False), ("False", False)])
def test_feedback(tmp_path: Path, label: object, good: bool) -> None:
    (judged,) = read(tmp_path, "kto", {"prompt": "q", "completion": "a", "label": label})
    assert (said(judged.answer), judged.good) == ([*ASKED, ("assistant", "a")], good)


def test_tools_go_with_both_answers(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    (pair,) = read(tmp_path, "dpo", {**PAIR, "tools": tools})
    assert json.loads(pair.chosen.tools) == json.loads(pair.rejected.tools) == tools


def test_feedback_on_a_whole_conversation(tmp_path: Path) -> None:
    (judged,) = read(tmp_path, "kto", {"completion": [USER, GOOD], "label": True})
    assert said(judged.answer) == [*ASKED, ("assistant", "a")]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_what_asks_the_same_is_not_parted_by_a_split(tmp_path: Path, objective: ObjectiveName) -> None:
    rows = [
        {"prompt": f"q{number // 2}", "chosen": "a", "rejected": "b", "completion": "ab"[number % 2], "label": True}
        for number in range(20)
    ]
    parts = split([read(tmp_path, objective, *rows)], 0.3, 1)
    asked = [{each.content for each in side} for side in (parts.train[0], parts.held_out)]
    assert asked[0]
    assert asked[1]
    assert not asked[0] & asked[1]


def test_columns_are_renamed(tmp_path: Path) -> None:
    row = {"question": "q", "better": "a", "worse": "b"}
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    (pair,) = read(tmp_path, "dpo", row, columns=columns)
    assert said(pair.rejected) == [*ASKED, ("assistant", "b")]


def test_rows_with_a_label_are_completions_for_sft(tmp_path: Path) -> None:
    (example,) = read(tmp_path, "sft", {"prompt": "q", "completion": "a", "label": True})
    assert said(example) == [*ASKED, ("assistant", "a")]


@pytest.mark.parametrize(
    ("objective", "row", "cause"),
    [
        ("dpo", {"prompt": "q", "chosen": "a"}, "no column rejected; found: prompt, chosen"),
        ("dpo", {**PAIR, "rejected": None}, "column rejected is null"),
        ("dpo", {**PAIR, "rejected": " "}, "column rejected is empty"),
        ("dpo", {**PAIR, "rejected": 3}, "column rejected is a number, neither text nor a list"),
        ("dpo", {**PAIR, "rejected": "a"}, "chosen equals rejected"),
        ("dpo", {**PAIR, "chosen": [GOOD], "rejected": [GOOD]}, "chosen equals rejected"),
        ("dpo", {"chosen": "a", "rejected": "b"}, "no column prompt, which the answer in chosen is to"),
        ("dpo", {"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "answer different prompts"),
        ("dpo", {**PAIR, "prompt": [USER, GOOD]}, "column prompt ends with a turn of the assistant"),
        ("dpo", {**PAIR, "chosen": [USER]}, "column chosen ends with a turn of the user"),
        ("dpo", {**PAIR, "chosen": [GOOD, USER, GOOD]}, "several turns after the prompt"),
        ("kto", {"prompt": "q", "completion": "a", "label": "good"}, "column label is 'good'; it says whether"),
        ("kto", {"prompt": "q", "completion": "a", "label": None}, "column label is None"),
        ("kto", {"prompt": "q", "completion": "a", "label": []}, "column label is []"),
        ("kto", {"prompt": "q", "completion": "", "label": True}, "column completion is empty"),
    ],
)
def test_a_bad_row_is_told_with_its_place(
    tmp_path: Path, objective: ObjectiveName, row: dict[str, Any], cause: str
) -> None:
    good = {"prompt": "q", "completion": "a", "label": True} if objective == "kto" else PAIR
    with pytest.raises(RunError) as caught:
        read(tmp_path, objective, good, row)
    assert caught.value.reason == "DataInvalid"
    assert "rows.jsonl, line 2: " in caught.value.message
    assert cause in caught.value.message


def test_rows_of_another_objective_are_refused_by_the_columns_that_are_needed(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match="objective kto takes no rows with these columns: prompt, chosen, rejected; needed"
    ):
        read(tmp_path, "kto", PAIR)
