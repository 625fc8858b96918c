"""Conversations out of rows: messages as OpenAI writes them, or ShareGPT; with tools, calls of them, and results."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from lorikeet_run.columns import add
from lorikeet_run.files import Placed, Row, invalid, kind

Role = Literal["system", "user", "assistant", "tool"]

SHAREGPT_COLUMN: Final = "conversations"
"""Where ShareGPT's rows have what others have in `messages`."""
_CALLS: Final = "function_call"
_OTHER: Final = "another of lorikeet"
_SHAREGPT: Final[dict[str, Role]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    _CALLS: "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""The role of each name that ShareGPT's turns are `from`."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: str
    """An object as JSON: text can be compared, and keeps the order in which the data has them."""
    id: str = ""
    """What the result names in `Message.answers`, where the data has ids."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    """May be empty in a turn that calls tools, and in a tool's result."""
    calls: tuple[Call, ...] = ()
    """The tools that an assistant's turn calls."""
    name: str = ""
    """The tool that a result is of, where the data says so."""
    answers: str = ""
    """The id of the call that a result is of, where the data says so."""

    def for_template(self) -> dict[str, Any]:
        """Return the turn as chat templates take it: arguments are an object, what is absent has no key."""
        told: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            told["tool_calls"] = [
                {
                    **({"id": call.id} if call.id else {}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in self.calls
            ]
        named = {"name": self.name, "tool_call_id": self.answers}
        return told | {key: value for key, value in named.items() if value}


Variant = tuple[str, list[dict[str, Any]], list[Any] | None]
"""What differs, in words; messages and tools as a template takes them."""


def tool_variants(messages: list[dict[str, Any]], tools: list[Any] | None) -> Iterator[Variant]:
    """Yield the conversation once without its tools, and once with other arguments of each call and in each result.

    A template that writes the same for one of them leaves that part out.
    """
    if tools:
        yield "the tools that the conversation may call", messages, None
    for number, message in enumerate(messages):
        for place, call in enumerate(message.get("tool_calls", ())):
            function = call["function"]
            other = call | {"function": function | {"arguments": function["arguments"] | {_OTHER: _OTHER}}}
            calls = [*message["tool_calls"][:place], other, *message["tool_calls"][place + 1 :]]
            yield f"the call of {function['name']}", _with(messages, number, {"tool_calls": calls}), tools
        if message["role"] == "tool":
            yield "tools' results", _with(messages, number, {"content": message["content"] + _OTHER}), tools


def _with(messages: list[dict[str, Any]], number: int, change: dict[str, Any]) -> list[dict[str, Any]]:
    return [*messages[:number], messages[number] | change, *messages[number + 1 :]]


def chat_column(row: Row) -> str:
    """Return the usual column of a conversation in this row: `messages`, or ShareGPT's."""
    return SHAREGPT_COLUMN if "messages" not in row and SHAREGPT_COLUMN in row else "messages"


def read_conversation(placed: Placed, name: str, system: str) -> tuple[Message, ...]:
    """Return the conversation in the row's column `name`, after the prompt `system` if there is one.

    Two turns in a row of one role are the template's to judge, and the last turn may be anyone's. What cannot be right
    is refused: raises RunError (DataInvalid).
    """
    if name not in placed.row:
        raise invalid(
            placed.where,
            f"no column {name}; found: {', '.join(placed.row) or 'none'} (format chat): {add('messages')}",
        )
    messages = read_turns(placed.row[name], name, placed.where)
    if system:
        if messages[0].role == "system":
            raise invalid(
                placed.where, "the conversation begins with a system message, and column system has one: keep one"
            )
        messages = (Message("system", system), *messages)
    check_order(messages, placed.where, calls_in_text=all("from" in turn for turn in placed.row[name]))
    return messages


def read_turns(turns: object, name: str, where: str) -> tuple[Message, ...]:
    """Return the turns in the column `name`, each right by itself. Raises RunError (DataInvalid)."""
    if not isinstance(turns, list) or not turns:
        what = "an empty list" if turns == [] else kind(turns)
        raise invalid(where, f"column {name} is {what}, not a list of {{role, content}} or {{from, value}}")
    return tuple(_message(turn, number, where) for number, turn in enumerate(turns, start=1))


def check_order(messages: Sequence[Message], where: str, *, calls_in_text: bool = False) -> None:
    """Raise RunError (DataInvalid) for turns in an order that cannot be right.

    `calls_in_text`: an assistant's text may be a call, as in ShareGPT.
    """
    if any(message.role == "system" for message in messages[1:]):
        raise invalid(where, "a system message stands only at the beginning: move it there, or leave it out")
    if next((message.role for message in messages if message.role != "system"), None) != "user":
        raise invalid(
            where,
            "the conversation must begin with a user's turn, after an optional system message: put one there, or leave"
            " the row out",
        )
    _check_results(messages, where, calls_in_text=calls_in_text)


def _check_results(messages: Sequence[Message], where: str, *, calls_in_text: bool) -> None:
    """Refuse a tool's result that answers no call; ShareGPT's turns may have the call in an assistant's text."""
    open_, ids = False, set[str]()
    for message in messages:
        if message.role != "tool":
            open_ = bool(message.calls) or (calls_in_text and message.role == "assistant")
            ids = {call.id for call in message.calls if call.id}
        elif not open_:
            raise invalid(
                where,
                "a tool's result follows no call: put the assistant's turn with tool_calls (ShareGPT: function_call)"
                " before it",
            )
        elif message.answers and ids and message.answers not in ids:
            known = ", ".join(sorted(ids))
            raise invalid(
                where,
                f"a tool's result has the tool_call_id {message.answers!r}, but the calls before it have {known}",
            )


def _message(turn: Any, number: int, where: str) -> Message:
    if not isinstance(turn, dict):
        raise invalid(where, f"message {number} is {kind(turn)}, not {{role, content}} or {{from, value}}")
    if "from" in turn and "role" not in turn:
        return _sharegpt(turn, number, where)
    role: Any = turn.get("role")
    content, calls = turn.get("content"), turn.get("tool_calls")
    if role not in get_args(Role):
        raise invalid(
            where, f"message {number} has the role {role!r}; roles are system, user, assistant and tool: rename it"
        )
    if turn.get("function_call"):
        raise invalid(where, f"message {number} has a function_call, OpenAI's old form: write it as tool_calls")
    if calls and role != "assistant":
        raise invalid(where, f"message {number} ({role}) has tool_calls, which only an assistant's turn has")
    made = _calls(calls, number, where) if calls else ()
    text = _content("" if content is None and made else content, role, number, where, may_be_empty=bool(made))
    if role != "tool":
        return Message(role, text, made)
    return Message(role, text, name=str(turn.get("name") or ""), answers=str(turn.get("tool_call_id") or ""))


def _sharegpt(turn: Row, number: int, where: str) -> Message:
    by, value = turn["from"], turn.get("value")
    role = _SHAREGPT.get(by) if isinstance(by, str) else None
    if role is None:
        raise invalid(where, f"message {number} is from {by!r}; known are {', '.join(_SHAREGPT)}: rename it")
    if by != _CALLS:
        return Message(role, _content(value, by, number, where))
    calls = _parsed(value, f"message {number} ({by})", where)
    return Message(role, "", _calls(calls if isinstance(calls, list) else [calls], number, where))


def _content(value: Any, role: str, number: int, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise invalid(where, f"message {number} has {kind(value)} as content, not text: write it as one text")
    if not value.strip() and not may_be_empty and role not in ("tool", "observation"):
        raise invalid(where, f"message {number} ({role}) is empty: leave out the turn, or the row")
    return value


def _calls(value: Any, number: int, where: str) -> tuple[Call, ...]:
    """Return calls of OpenAI's shape, or bare {name, arguments} as ShareGPT has them."""
    if not isinstance(value, list) or not value:
        raise invalid(where, f"message {number} has no list of calls, but {kind(value)}")
    made = []
    for call in value:
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise invalid(where, f"message {number} calls no function by name: a call is {{name, arguments}}")
        what = f"message {number}, arguments of {name}"
        arguments = _parsed(function.get("arguments", {}), what, where)
        if not isinstance(arguments, dict):
            raise invalid(where, f"{what}: {kind(arguments)}, not an object")
        made.append(Call(name, _json(arguments), str(call.get("id") or "")))
    return tuple(made)


def read_tools(placed: Placed, name: str) -> str:
    """Return the tools in the row's column `name` as JSON, each with OpenAI's frame; empty where there are none.

    Raises RunError (DataInvalid).
    """
    value = placed.row.get(name)
    if value is None or value == "":
        return ""
    tools = _parsed(value, f"column {name}", placed.where)
    if not isinstance(tools, list):
        raise invalid(placed.where, f"column {name} is {kind(tools)}, not a list of functions")
    framed = []
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(
                placed.where, f"column {name}, tool {number}, is no function: it is {{name, description, parameters}}"
            )
        framed.append({"type": "function", "function": function})
    return _json(framed) if framed else ""


def _parsed(value: Any, what: str, where: str) -> Any:
    """Return JSON that may stand as text, as where a column's rows have different shapes."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise invalid(where, f"{what}: text that is not JSON ({error})") from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
