"""Conversations: OpenAI's messages and ShareGPT's, tools and their calls, and what cannot be right."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from lorikeet_api.training import Dataset
from lorikeet_run.conversation import Call, Message
from lorikeet_run.data import read_source
from lorikeet_run.errors import RunError
from lorikeet_run.examples import Example

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "Today's weather", "parameters": PARAMETERS}
FRAMED = {"type": "function", "function": WEATHER}
USER, ANSWER = {"role": "user", "content": "Rain in Bonn?"}, {"role": "assistant", "content": "No."}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "dry"}


def read(folder: Path, row: dict[str, Any], **fields: Any) -> Example:
    path = folder / "a.jsonl"
    path.write_text(json.dumps(row))
    dataset = Dataset.model_validate({"train": [{"uri": "s3://data/a"}], **fields})
    (example,) = read_source([(path, path.name)], dataset, "sft")
    assert isinstance(example, Example)
    return example


def shared(*turns: tuple[str, Any], **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": by, "value": value} for by, value in turns], **columns}


def said(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def test_sharegpts_names_are_roles(tmp_path: Path) -> None:
    row = shared(("system", "Be brief."), ("human", "a"), ("gpt", "b"), ("user", "c"), ("assistant", "d"))
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert said(read(tmp_path, row)) == list(zip(roles, ["Be brief.", "a", "b", "c", "d"], strict=True))


def test_a_system_column_begins_the_conversation(tmp_path: Path) -> None:
    turns = (("human", "a"), ("gpt", "b"))
    assert said(read(tmp_path, shared(*turns, system="Be brief.")))[0] == ("system", "Be brief.")
    assert said(read(tmp_path, shared(*turns, system=""))) == [("user", "a"), ("assistant", "b")]
    assert said(read(tmp_path, {"messages": [USER, ANSWER], "s": "x"}, columns={"system": "s"}))[0] == ("system", "x")


def test_the_columns_of_a_conversation_are_renamed(tmp_path: Path) -> None:
    row = {"dialog": shared(("human", "a"), ("gpt", "b"))["conversations"], "functions": [WEATHER]}
    example = read(tmp_path, row, columns={"messages": "dialog", "tools": "functions"})
    assert said(example) == [("user", "a"), ("assistant", "b")]
    assert json.loads(example.tools) == [FRAMED]


@pytest.mark.parametrize("as_text", [False, True])
def test_calls_and_results_are_read_from_messages(tmp_path: Path, as_text: bool) -> None:
    row: dict[str, Any] = {"messages": [USER, CALLING, RESULT, ANSWER], "tools": [FRAMED]}
    if as_text:
        function = {"name": "weather", "arguments": json.dumps({"city": "Bonn"})}
        row["messages"] = [USER, {**CALLING, "tool_calls": [{**CALL, "function": function}]}, RESULT, ANSWER]
        row["tools"] = json.dumps([FRAMED])
    example = read(tmp_path, row)
    assert example.messages[1:3] == (
        Message("assistant", "", calls=(Call("weather", '{"city": "Bonn"}', "c1"),)),
        Message("tool", "dry", name="weather", answers="c1"),
    )
    assert [message.for_template() for message in example.messages] == [
        USER,
        {**CALLING, "content": ""},
        RESULT,
        ANSWER,
    ]
    assert json.loads(example.tools) == [FRAMED]


@pytest.mark.parametrize("several", [False, True])
def test_calls_and_results_are_read_from_sharegpt(tmp_path: Path, several: bool) -> None:
    call: Any = {"name": "weather", "arguments": {"city": "Bonn"}}
    value = json.dumps([call, call] if several else call)
    turns = (("human", "Rain?"), ("function_call", value), ("observation", "dry"), ("gpt", "No."))
    example = read(tmp_path, shared(*turns, tools=json.dumps([WEATHER])))
    made = Call("weather", '{"city": "Bonn"}')
    assert example.messages[1:3] == (
        Message("assistant", "", (made, made) if several else (made,)),
        Message("tool", "dry"),
    )
    assert json.loads(example.tools) == [FRAMED]


def test_a_call_may_stand_in_sharegpts_text(tmp_path: Path) -> None:
    row = shared(("human", "Rain?"), ("gpt", "<tool_call>{}</tool_call>"), ("tool", "dry"), ("gpt", "No."))
    assert [role for role, _ in said(read(tmp_path, row))] == ["user", "assistant", "tool", "assistant"]


def test_a_call_may_be_all_that_is_trained(tmp_path: Path) -> None:
    assert read(tmp_path, {"messages": [USER, CALLING]}).train_on == "assistant"


def test_a_result_may_be_empty_and_several_may_answer_several_calls(tmp_path: Path) -> None:
    calls = {**CALLING, "content": "Looking.", "tool_calls": [CALL, {**CALL, "id": "c2"}]}
    results = [{**RESULT, "content": ""}, {**RESULT, "tool_call_id": "c2"}]
    example = read(tmp_path, {"messages": [USER, calls, *results, ANSWER]})
    assert said(example)[1:4] == [("assistant", "Looking."), ("tool", ""), ("tool", "dry")]


@pytest.mark.parametrize("none", [None, "", [], "[]"])
def test_no_tools_are_no_tools(tmp_path: Path, none: Any) -> None:
    assert read(tmp_path, {"messages": [USER, ANSWER], "tools": none}).tools == ""


def test_parquets_nulls_are_neither_arguments_nor_parts_of_a_schema(tmp_path: Path) -> None:
    """Every object of a Parquet column has the keys of all."""
    clock: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
    ask = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "CET"}}}
    path = tmp_path / "a.parquet"
    rows = [
        {"messages": [USER, CALLING, RESULT, ANSWER], "tools": [FRAMED]},
        {"messages": [USER, {**CALLING, "tool_calls": [ask]}, {**RESULT, "tool_call_id": None}], "tools": [clock]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    dataset = Dataset.model_validate({"train": [{"uri": "s3://data/a"}]})
    first, second = read_source([(path, path.name)], dataset, "sft")
    assert isinstance(first, Example)
    assert isinstance(second, Example)
    assert first.messages[1].calls == (Call("weather", '{"city": "Bonn"}', "c1"),)
    assert second.messages[1].calls == (Call("clock", '{"zone": "CET"}'),)
    assert json.loads(first.tools) == [FRAMED]


def test_examples_that_differ_in_tools_or_calls_alone_are_different(tmp_path: Path) -> None:
    elsewhere = {**CALL, "function": {"name": "weather", "arguments": {"city": "Kiel"}}}
    rows: list[dict[str, Any]] = [
        {"messages": [USER, CALLING]},
        {"messages": [USER, {**CALLING, "tool_calls": [elsewhere]}]},
        {"messages": [USER, CALLING], "tools": [FRAMED]},
    ]
    examples = [read(tmp_path, row) for row in rows]
    assert len({example.content for example in examples}) == 3


SHARED_KNOWN = "known are human, user, gpt, assistant, system, function_call, observation, tool"
HELLO = {"role": "assistant", "content": "Hello."}


def calling(function: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown name": (shared(("human", "a"), ("bot", "b")), f"message 2 is from 'bot'; {SHARED_KNOWN}: rename it"),
    "a name that is none": (shared((None, "a")), "message 1 is from None; known"),  # type: ignore[arg-type]
    "a turn without value": ({"conversations": [{"from": "human"}]}, "message 1 has null as content"),
    "an empty turn": (shared(("human", "a"), ("gpt", " ")), "message 2 (gpt) is empty: leave out the turn"),
    "an empty answer": ({"messages": [USER, {**ANSWER, "content": ""}]}, "message 2 (assistant) is empty"),
    "no answer at all": ({"messages": [USER, {"role": "assistant"}]}, "message 2 has null as content"),
    "the assistant first": (shared(("gpt", "b"), ("human", "a")), "must begin with a user's turn"),
    "the assistant first after a system column": (shared(("gpt", "b"), system="x"), "must begin with a user's turn"),
    "no user": ({"messages": [{"role": "system", "content": "x"}]}, "must begin with a user's turn"),
    "two system prompts": (shared(("system", "x"), ("human", "a"), system="y"), "column system has one: keep one"),
    "a result of no call": ({"messages": [USER, HELLO, RESULT, ANSWER]}, "a tool's result follows no call: put"),
    "a result after the user": (shared(("human", "a"), ("observation", "x")), "a tool's result follows no call"),
    "a result of a call long answered": (
        {"messages": [USER, CALLING, RESULT, ANSWER, USER, RESULT, ANSWER]},
        "a tool's result follows no call",
    ),
    "a result of another call": (
        {"messages": [USER, CALLING, {**RESULT, "tool_call_id": "c7"}, ANSWER]},
        "has the tool_call_id 'c7', but the calls before it have c1",
    ),
    "a user that calls": ({"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]}, "message 1 (user) has tool_calls"),
    "the old form of a call": (
        {"messages": [USER, {"role": "assistant", "function_call": {"name": "f"}}]},
        "OpenAI's old form: write it as tool_calls",
    ),
    "the old form of a result": (
        {"messages": [USER, {"role": "function", "content": "x"}]},
        "the role 'function'; roles are system, user, assistant and tool",
    ),
    "calls that are no list": (
        {"messages": [USER, {**CALLING, "tool_calls": CALL}]},
        "no list of calls, but an object",
    ),
    "a call without a name": (calling({"arguments": {}}), "message 2 calls no function by name"),
    "arguments that are not JSON": (
        calling({"name": "f", "arguments": "x=1"}),
        "arguments of f: text that is not JSON",
    ),
    "arguments that are no object": (
        calling({"name": "f", "arguments": "[1]"}),
        "arguments of f: a list, not an object",
    ),
    "a call in ShareGPT that is not JSON": (
        shared(("human", "a"), ("function_call", "f()")),
        "message 2 (function_call): text that is not JSON",
    ),
    "tools that are not JSON": (
        {"messages": [USER, ANSWER], "tools": "weather"},
        "column tools: text that is not JSON",
    ),
    "tools that are no list": ({"messages": [USER, ANSWER], "tools": WEATHER}, "column tools is an object, not a list"),
    "a tool without a name": ({"messages": [USER, ANSWER], "tools": [{}]}, "column tools, tool 1, is no function"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_right_is_told_with_its_place(tmp_path: Path, what: str) -> None:
    row, cause = WRONG[what]
    with pytest.raises(RunError) as caught:
        read(tmp_path, row, trainOn="all")
    assert caught.value.reason == "DataInvalid"
    assert caught.value.message.startswith("a.jsonl, line 1: ")
    assert cause in caught.value.message
