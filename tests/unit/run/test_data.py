"""Rows and examples: every format and file kind, and every way in which data is wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from lorikeet_api.contract import EXIT_BAD_DATA
from lorikeet_api.objectives import ObjectiveName
from lorikeet_api.training import Dataset
from lorikeet_run.conversation import Message
from lorikeet_run.data import read_source
from lorikeet_run.errors import RunError
from lorikeet_run.examples import Example

PAIR = {"prompt": "1+1", "completion": "2"}
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}

SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}


def dataset(**fields: Any) -> Dataset:
    return Dataset.model_validate({"train": [{"uri": "s3://data/train.jsonl"}], **fields})


def read(path: Path, objective: ObjectiveName = "sft", **fields: Any) -> list[Any]:
    return list(read_source([(path, path.name)], dataset(**fields), objective))


def write(folder: Path, name: str, content: object) -> Path:
    """Write bytes, text, or rows as JSON lines."""
    path = folder / name
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    return path


def turns(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    ("row", "expected", "train_on"),
    [
        (PAIR, [("user", "1+1"), ("assistant", "2")], "completion"),
        ({**PAIR, "system": "Add."}, [("system", "Add."), ("user", "1+1"), ("assistant", "2")], "completion"),
        ({"instruction": "Add", "output": "2"}, [("user", "Add"), ("assistant", "2")], "completion"),
        (
            {"instruction": "Add", "input": "1 1", "output": "2"},
            [("user", "Add\n\n1 1"), ("assistant", "2")],
            "completion",
        ),
        ({"instruction": "Add", "input": "", "output": "2"}, [("user", "Add"), ("assistant", "2")], "completion"),
        (CHAT, [("user", "hi"), ("assistant", "hello")], "assistant"),
        (SHAREGPT, [("user", "hi"), ("assistant", "hello")], "assistant"),
    ],
)
def test_auto_tells_the_format(
    tmp_path: Path, row: dict[str, Any], expected: list[tuple[str, str]], train_on: str
) -> None:
    (example,) = read(write(tmp_path, "a.jsonl", [row]))
    assert (turns(example), example.train_on) == (expected, train_on)


def test_text_has_no_roles(tmp_path: Path) -> None:
    (example,) = read(write(tmp_path, "a.jsonl", [{"text": "once"}]))
    assert (example.text, example.messages, example.train_on) == ("once", (), "all")


def test_all_file_kinds_say_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": "a, b", "completion": 'line one\nline "two"'}, {"prompt": "ä", "completion": "ß"}]
    csv = 'prompt,completion\r\n"a, b","line one\nline ""two"""\r\nä,ß\r\n'
    table = tmp_path / "d.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), table)
    paths = [
        write(tmp_path, "a.jsonl", rows),
        write(tmp_path, "b.json", json.dumps(rows)),
        write(tmp_path, "c.csv", csv),
        table,
    ]
    contents = [[example.content for example in read(path)] for path in paths]
    assert len(contents[0]) == 2
    assert contents[0] == contents[1] == contents[2] == contents[3]
    assert [example.where for example in read(paths[2])] == ["c.csv, line 2", "c.csv, line 4"]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\n\n  \n" + json.dumps(PAIR).encode()
    assert [example.where for example in read(write(tmp_path, "a.jsonl", content))] == [
        "a.jsonl, line 1",
        "a.jsonl, line 4",
    ]


def test_parquet_messages_with_null_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    messages = [
        {"role": "user", "content": "hi", "tool_calls": None},
        {"role": "assistant", "content": "yo", "tool_calls": None},
    ]
    parquet.write_table(pa.Table.from_pylist([{"messages": messages}]), path)
    assert turns(read(path)[0]) == [("user", "hi"), ("assistant", "yo")]


def test_columns_are_renamed(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [{"frage": "q", "antwort": "a", "prompt": "other"}])
    (example,) = read(path, columns={"prompt": "frage", "completion": "antwort"})
    assert example.messages == (Message("user", "q"), Message("assistant", "a"))


def test_each_source_has_the_format_of_its_own_first_row(tmp_path: Path) -> None:
    assert turns(read(write(tmp_path, "a.jsonl", [CHAT]))[0])
    assert turns(read(write(tmp_path, "b.jsonl", [PAIR]))[0])


def test_a_row_of_two_formats_is_read_as_the_one_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", [{**PAIR, "text": "once"}])
    assert [(turns(example), example.text) for example in read(path, format="text")] == [([], "once")]
    (example,) = read(path, format="completion")
    assert (turns(example), example.text) == ([("user", "1+1"), ("assistant", "2")], "")


GOOD = json.dumps(PAIR) + "\n"
WRONG: list[tuple[str, object, dict[str, Any], str, str]] = [
    ("a.jsonl", "", {}, "a.jsonl:", "no rows"),
    ("a.jsonl", GOOD * 36 + "{oops}\n" + GOOD, {}, "a.jsonl, line 37:", "not JSON"),
    ("a.jsonl", GOOD + "[1]\n", {}, "a.jsonl, line 2:", "this is a list"),
    ("a.jsonl", GOOD.encode() + b'{"prompt": "\xff"}', {}, "a.jsonl, line 2:", "not UTF-8 (byte 0xff"),
    ("a.jsonl", [PAIR, {"prompt": "x"}], {}, "a.jsonl, line 2:", "no column completion; found: prompt"),
    (
        "a.jsonl",
        [PAIR, {"prompt": "x", "completion": 3}],
        {},
        "a.jsonl, line 2:",
        "column completion is a number, not text",
    ),
    ("a.jsonl", [PAIR, {"prompt": "x", "completion": None}], {}, "a.jsonl, line 2:", "is null"),
    ("a.jsonl", [PAIR, {"prompt": "x", "completion": " "}], {}, "a.jsonl, line 2:", "column completion is empty"),
    ("a.jsonl", [{"q": "x"}], {}, "a.jsonl, line 1:", "objective sft takes no rows with these columns: q"),
    ("a.jsonl", [{**PAIR, "system": 1}], {}, "a.jsonl, line 1:", "column system is a number"),
    ("a.jsonl", [{"messages": []}], {}, "a.jsonl, line 1:", "an empty list"),
    ("a.jsonl", [{"messages": "hi"}], {}, "a.jsonl, line 1:", "messages is text, not a list"),
    ("a.jsonl", [{"messages": ["hi"]}], {}, "a.jsonl, line 1:", "message 1 is text"),
    ("a.jsonl", [{"messages": [{"role": "robot", "content": "x"}]}], {}, "line 1:", "the role 'robot'"),
    ("a.jsonl", [{"messages": [{"role": "user", "content": [{}]}]}], {}, "line 1:", "a list as content"),
    ("a.jsonl", [{"messages": [{"role": "user", "content": ""}]}], {}, "line 1:", "message 1 (user) is empty"),
    ("a.jsonl", [{"messages": [{"role": "user", "content": "x"}]}], {}, "line 1:", "no assistant turn"),
    ("a.jsonl", [{"messages": [*CHAT["messages"], {"role": "system", "content": "x"}]}], {}, "line 1:", "beginning"),
    ("a.jsonl", [PAIR], {"format": "chat"}, "a.jsonl, line 1:", "no column messages; found: prompt, completion"),
    ("a.jsonl", [{"text": "x"}], {"trainOn": "completion"}, "a.jsonl, line 1:", "text rows have no roles"),
    ("a.json", GOOD + GOOD, {}, "a.json:", "named .jsonl"),
    ("a.json", json.dumps(PAIR), {}, "a.json:", "holds a list of objects, this is an object"),
    ("a.json", json.dumps([PAIR, 7]), {}, "a.json, row 2:", "this is a number"),
    ("a.csv", "prompt,completion\na,b\nc\n", {}, "a.csv, line 3:", "1 cells, but the header names 2"),
    ("a.csv", "prompt,prompt\na,b\n", {}, "a.csv, line 1:", "named twice"),
    ("a.csv", 'prompt,completion\na,"b\n', {}, "a.csv, line 2:", "not CSV"),
    ("a.csv", "prompt,completion\n", {}, "a.csv:", "no rows"),
    ("a.csv", b"prompt,completion\n\xff,b\n", {}, "a.csv:", "not UTF-8"),
    ("a.parquet", b"PAR1 not really", {}, "a.parquet:", "not Parquet"),
    ("a.txt", "x", {}, "a.txt:", "a .txt file"),
]


@pytest.mark.parametrize(("name", "content", "fields", "where", "cause"), WRONG)
def test_bad_data_is_told_with_its_place(
    tmp_path: Path, name: str, content: object, fields: dict[str, Any], where: str, cause: str
) -> None:
    with pytest.raises(RunError) as caught:
        read(write(tmp_path, name, content), **fields)
    assert (caught.value.reason, caught.value.exit_code) == ("DataInvalid", EXIT_BAD_DATA)
    assert where in caught.value.message
    assert cause in caught.value.message


@pytest.mark.parametrize(
    "roles", [["assistant"], ["system", "assistant"], ["assistant", "user", "assistant"], ["system"]]
)
def test_a_conversation_begins_with_the_user(tmp_path: Path, roles: list[str]) -> None:
    row = {"messages": [{"role": role, "content": "x"} for role in roles]}
    with pytest.raises(RunError, match=r"a.jsonl, line 1: the conversation must begin with a user's turn"):
        read(write(tmp_path, "a.jsonl", [row]), trainOn="all")


def test_only_line_ends_end_the_lines_of_a_csv_file(tmp_path: Path) -> None:
    text = "prompt,completion\r\nq1,hello\u2028wor\x0cld\nq2,b\n"
    first, second = read(write(tmp_path, "a.csv", text))
    assert turns(first)[-1] == ("assistant", "hello\u2028wor\x0cld")
    assert second.where == "a.csv, line 3"
