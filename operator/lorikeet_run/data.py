"""Examples out of rows: instruction, chat, completion and text, checked before anything heavy is loaded."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lorikeet_api.training import FORMAT_COLUMNS, Dataset, TrainOn
from lorikeet_run.conversation import Message, chat_column, read_conversation, read_tools
from lorikeet_run.files import Placed, invalid, kind, read_rows

Format = Literal["instruction", "chat", "completion", "text"]

DEFAULT_TRAIN_ON: Final[dict[Format, TrainOn]] = {
    "instruction": "completion",
    "completion": "completion",
    "chat": "assistant",
    "text": "all",
}
_NEEDED: Final[dict[Format, tuple[str, ...]]] = {
    "chat": ("messages",),
    "instruction": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The roles that a row of each format cannot do without, in the order in which `auto` looks for them."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a conversation, or a plain text."""

    where: str
    """File and line or row."""
    train_on: TrainOn
    """The tokens that the loss counts."""
    messages: tuple[Message, ...] = ()
    """The conversation; empty for a plain text."""
    text: str = ""
    """The plain text."""
    tools: str = ""
    """The tools that a conversation may call, as JSON; empty where there are none."""

    @property
    def content(self) -> tuple[tuple[Message, ...], str, str]:
        """What it teaches: equal examples have equal contents."""
        return self.messages, self.text, self.tools


def read_source(files: Sequence[tuple[Path, str]], dataset: Dataset) -> Iterator[Example]:
    """Yield the examples of one source: its files as (path, name), in order.

    With format `auto` the source's first row decides. Raises RunError (DataInvalid).
    """
    rows = (placed for path, name in files for placed in read_rows(path, name))
    return _examples(rows, dataset)


def _examples(rows: Iterable[Placed], dataset: Dataset) -> Iterator[Example]:
    data_format: Format | None = None if dataset.format == "auto" else dataset.format
    for placed in rows:
        if data_format is None:
            data_format = detect(placed, dataset)
        yield _example(placed, data_format, dataset)


def column(role: str, dataset: Dataset) -> str:
    """Return the name of the column that plays `role`."""
    renamed = getattr(dataset.columns, role) if dataset.columns is not None else None
    return str(renamed) if renamed is not None else role


def detect(placed: Placed, dataset: Dataset) -> Format:
    """Return the format that the row's columns tell. Raises RunError (DataInvalid) if none does."""
    for data_format, roles in _NEEDED.items():
        if all(_found(role, placed, dataset) in placed.row for role in roles):
            return data_format
    found = ", ".join(placed.row) or "none"
    raise invalid(
        placed.where,
        f"no format has these columns: {found}; needed are messages or conversations, or instruction and output,"
        " or prompt and completion, or text; dataset.columns maps other names",
    )


def _example(placed: Placed, data_format: Format, dataset: Dataset) -> Example:
    train_on = dataset.train_on or DEFAULT_TRAIN_ON[data_format]
    if data_format == "text":
        if train_on != "all":
            raise invalid(placed.where, f"text rows have no roles: trainOn {train_on} cannot be, choose all")
        return Example(placed.where, train_on, text=_text(placed, "text", data_format, dataset))
    tools = ""
    if data_format == "chat":
        system = _optional(placed, "system", dataset)
        messages = read_conversation(placed, _found("messages", placed, dataset), system)
        tools = read_tools(placed, column("tools", dataset))
    else:
        messages = tuple(_turns(placed, data_format, dataset))
    if train_on != "all" and not any(message.role == "assistant" for message in messages):
        raise invalid(placed.where, "no assistant turn to train on")
    return Example(placed.where, train_on, messages=messages, tools=tools)


def _found(role: str, placed: Placed, dataset: Dataset) -> str:
    """Return the column that plays `role` in this row: a conversation has two usual names."""
    name = column(role, dataset)
    return chat_column(placed.row) if name == "messages" else name


def _turns(placed: Placed, data_format: Format, dataset: Dataset) -> Iterator[Message]:
    """Yield an instruction's or completion's turns: system (if any), user, assistant.

    An instruction's input follows it after a blank line.
    """
    system = _optional(placed, "system", dataset)
    if system:
        yield Message("system", system)
    question, answer = _NEEDED[data_format]
    prompt = _text(placed, question, data_format, dataset)
    more = _optional(placed, "input", dataset) if data_format == "instruction" else ""
    yield Message("user", f"{prompt}\n\n{more}" if more else prompt)
    yield Message("assistant", _text(placed, answer, data_format, dataset))


def _text(placed: Placed, role: str, data_format: Format, dataset: Dataset) -> str:
    name = column(role, dataset)
    if name not in placed.row:
        wanted = ", ".join(FORMAT_COLUMNS[data_format])
        raise invalid(
            placed.where,
            f"no column {name}; found: {', '.join(placed.row) or 'none'} (format {data_format}: {wanted})",
        )
    value = placed.row[name]
    if not isinstance(value, str):
        raise invalid(placed.where, f"column {name} is {kind(value)}, not text")
    if not value.strip():
        raise invalid(placed.where, f"column {name} is empty")
    return value


def _optional(placed: Placed, role: str, dataset: Dataset) -> str:
    name = column(role, dataset)
    value = placed.row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid(placed.where, f"column {name} is {kind(value)}, not text")
    return value if value.strip() else ""
