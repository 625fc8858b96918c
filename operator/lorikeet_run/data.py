"""Examples out of rows, by format; checked before anything heavy is loaded."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lorikeet_api.objectives import OBJECTIVE_FORMATS, ObjectiveName
from lorikeet_api.training import Dataset, TrainOn
from lorikeet_run.columns import column, optional, text
from lorikeet_run.conversation import Message, chat_column, read_conversation, read_tools
from lorikeet_run.examples import Example, Instance
from lorikeet_run.files import Placed, invalid, read_rows
from lorikeet_run.preferences import feedback, preference
from lorikeet_run.prompts import prompt

Format = Literal["chat", "instruction", "completion", "text", "preference", "feedback", "prompt"]

DEFAULT_TRAIN_ON: Final[dict[str, TrainOn]] = {
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
    "preference": ("chosen", "rejected"),
    "feedback": ("completion", "label"),
    "prompt": ("prompt",),
}
"""The roles that a row of each format cannot do without, in the order in which `auto` looks for them."""


def read_source(
    files: Sequence[tuple[Path, str]], dataset: Dataset, objective: ObjectiveName, columns: Sequence[str] = ()
) -> Iterator[Instance]:
    """Yield the rows of one source, as an objective takes them: its files as (path, name), in order.

    `columns` are those that rewards read (`Objective.columns`). With format `auto` the source's first row decides.
    Raises RunError (DataInvalid).
    """
    rows = (placed for path, name in files for placed in read_rows(path, name))
    return _examples(rows, dataset, objective, columns)


@dataclass(frozen=True)
class Source:
    """The rows of one source, as `read_source` reads them, anew each time."""

    files: Sequence[tuple[Path, str]]
    dataset: Dataset
    objective: ObjectiveName
    columns: Sequence[str]
    rows: int
    """How many there are."""

    def __iter__(self) -> Iterator[Instance]:
        return read_source(self.files, self.dataset, self.objective, self.columns)

    def __len__(self) -> int:
        return self.rows


def _examples(
    rows: Iterable[Placed], dataset: Dataset, objective: ObjectiveName, columns: Sequence[str]
) -> Iterator[Instance]:
    data_format: Format | None = None if dataset.format == "auto" else dataset.format
    for placed in rows:
        if data_format is None:
            data_format = detect(placed, dataset, objective)
        yield _row(placed, data_format, dataset, columns)


def detect(placed: Placed, dataset: Dataset, objective: ObjectiveName) -> Format:
    """Return the format that the row's columns tell. Raises RunError (DataInvalid) if none does."""
    known = {name: roles for name, roles in _NEEDED.items() if name in OBJECTIVE_FORMATS[objective]}
    for data_format, roles in known.items():
        if all(_found(role, placed, dataset) in placed.row for role in roles):
            return data_format
    found = ", ".join(placed.row) or "none"
    needed = ", or ".join(" and ".join(roles) for roles in known.values())
    raise invalid(
        placed.where,
        f"objective {objective} takes no rows with these columns: {found}; needed are {needed}; dataset.columns maps"
        " other names, but those of a general set",
    )


def _row(placed: Placed, data_format: Format, dataset: Dataset, columns: Sequence[str]) -> Instance:
    if data_format == "preference":
        return preference(placed, dataset)
    if data_format == "feedback":
        return feedback(placed, dataset)
    if data_format == "prompt":
        return prompt(placed, dataset, columns)
    return _example(placed, data_format, dataset)


def _example(placed: Placed, data_format: Format, dataset: Dataset) -> Example:
    train_on = dataset.train_on or DEFAULT_TRAIN_ON[data_format]
    if data_format == "text":
        if train_on != "all":
            raise invalid(placed.where, f"text rows have no roles: trainOn {train_on} cannot be, choose all")
        return Example(placed.where, train_on, text=text(placed, "text", data_format, dataset))
    tools = ""
    if data_format == "chat":
        system = optional(placed, "system", dataset)
        messages = read_conversation(placed, _found("messages", placed, dataset), system)
        tools = read_tools(placed, column("tools", dataset))
    else:
        messages = tuple(_turns(placed, data_format, dataset))
    if train_on != "all" and not any(message.role == "assistant" for message in messages):
        raise invalid(placed.where, "no assistant turn to train on: add one, leave the row out, or set trainOn to all")
    return Example(placed.where, train_on, messages=messages, tools=tools)


def _found(role: str, placed: Placed, dataset: Dataset) -> str:
    """Return the column that plays `role` in this row: a conversation has two usual names."""
    name = column(role, dataset)
    return chat_column(placed.row) if name == "messages" else name


def _turns(placed: Placed, data_format: Format, dataset: Dataset) -> Iterator[Message]:
    """Yield an instruction's or completion's turns: system (if any), user, assistant.

    An instruction's input follows it after a blank line.
    """
    system = optional(placed, "system", dataset)
    if system:
        yield Message("system", system)
    question, answer = _NEEDED[data_format]
    prompt = text(placed, question, data_format, dataset)
    more = optional(placed, "input", dataset) if data_format == "instruction" else ""
    yield Message("user", f"{prompt}\n\n{more}" if more else prompt)
    yield Message("assistant", text(placed, answer, data_format, dataset))
