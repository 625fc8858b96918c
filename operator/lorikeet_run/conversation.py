"""Conversations out of rows: lists of {role, content}."""

from collections.abc import Sequence
from typing import Any

from lorikeet_api.training import Dataset
from lorikeet_run.columns import column, value
from lorikeet_run.examples import Message
from lorikeet_run.files import Placed, invalid, kind


def conversation(placed: Placed, dataset: Dataset) -> tuple[Message, ...]:
    """Return the conversation of a row of the format chat. Raises RunError (DataInvalid)."""
    messages = turns(value(placed, "messages", "chat", dataset), column("messages", dataset), placed.where)
    check_beginning(messages, placed.where)
    return messages


def turns(listed: object, name: str, where: str) -> tuple[Message, ...]:
    """Return the turns in the column `name`. Raises RunError (DataInvalid)."""
    if not isinstance(listed, list) or not listed:
        what = "an empty list" if listed == [] else kind(listed)
        raise invalid(where, f"column {name} is {what}, not a list of {{role, content}}")
    return tuple(_message(turn, number, where) for number, turn in enumerate(listed, start=1))


def check_beginning(messages: Sequence[Message], where: str) -> None:
    """Raise RunError (DataInvalid) if a conversation does not begin as one does."""
    if any(message.role == "system" for message in messages[1:]):
        raise invalid(where, "a system message stands only at the beginning")
    if all(message.role == "system" for message in messages) or _first_turn(messages).role == "assistant":
        raise invalid(where, "the conversation must begin with a user's turn, after an optional system message")


def _first_turn(messages: Sequence[Message]) -> Message:
    return next(message for message in messages if message.role != "system")


def _message(turn: Any, number: int, where: str) -> Message:
    if not isinstance(turn, dict):
        raise invalid(where, f"message {number} is {kind(turn)}, not {{role, content}}")
    role, content = turn.get("role"), turn.get("content")
    if role in ("tool", "function") or turn.get("tool_calls"):
        raise invalid(where, f"message {number} calls a tool or answers for one, which is not trained; leave it out")
    if role not in ("system", "user", "assistant"):
        raise invalid(where, f"message {number} has the role {role!r}; roles are system, user and assistant")
    if not isinstance(content, str):
        raise invalid(where, f"message {number} has {kind(content)} as content, not text")
    if not content.strip():
        raise invalid(where, f"message {number} ({role}) is empty")
    return Message(role, content)
