"""Pairs of answers and single judgements out of rows: the formats preference and feedback; and what they are about."""

from typing import Final

from lorikeet_api.training import Dataset
from lorikeet_run.columns import column, optional, text, value
from lorikeet_run.conversation import Message, check_order, read_tools, read_turns
from lorikeet_run.examples import Example, Feedback, Preference
from lorikeet_run.files import Placed, invalid, kind

_LABELS: Final[dict[object, bool]] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""What a label may be; 1 and 0 are equal to True and False, text comes out of CSV files."""


def preference(placed: Placed, dataset: Dataset) -> Preference:
    """Return a row of the format preference. Raises RunError (DataInvalid).

    prompt, chosen and rejected are texts or lists of messages. Without a prompt, chosen and rejected are whole
    conversations that differ in their last turn.
    """
    prompt = turns_before(placed, "preference", dataset)
    chosen = _answered(placed, "chosen", "preference", prompt, dataset)
    rejected = _answered(placed, "rejected", "preference", prompt, dataset)
    if chosen[:-1] != rejected[:-1]:
        raise invalid(
            placed.where, "chosen and rejected answer different prompts; both must have the same turns before"
        )
    if chosen == rejected:
        raise invalid(placed.where, "chosen equals rejected, so there is nothing to prefer: remove the row")
    return Preference(_example(placed, chosen, dataset), _example(placed, rejected, dataset))


def feedback(placed: Placed, dataset: Dataset) -> Feedback:
    """Return a row of the format feedback. Raises RunError (DataInvalid)."""
    prompt = turns_before(placed, "feedback", dataset)
    answered = _answered(placed, "completion", "feedback", prompt, dataset)
    label = value(placed, "label", "feedback", dataset)
    known = label.strip().lower() if isinstance(label, str) else label
    if not isinstance(known, bool | int | str) or known not in _LABELS:
        name = column("label", dataset)
        raise invalid(placed.where, f"column {name} is {label!r}; it says whether the answer is good: true or false")
    return Feedback(_example(placed, answered, dataset), _LABELS[known])


def _example(placed: Placed, messages: tuple[Message, ...], dataset: Dataset) -> Example:
    tools = read_tools(placed, column("tools", dataset))
    return Example(placed.where, "completion", messages=messages, tools=tools)


def turns_before(placed: Placed, data_format: str, dataset: Dataset) -> tuple[Message, ...]:
    """Return the turns before the answer; none where the row has no prompt. Raises RunError (DataInvalid)."""
    name = column("prompt", dataset)
    system = optional(placed, "system", dataset)
    first = (Message("system", system),) if system else ()
    if name not in placed.row:
        return first
    if isinstance(placed.row[name], str):
        return (*first, Message("user", text(placed, "prompt", data_format, dataset)))
    listed = read_turns(placed.row[name], name, placed.where)
    if listed[-1].role != "user":
        raise invalid(
            placed.where, f"column {name} ends with a turn of the {listed[-1].role}: it must end with a user's"
        )
    return (*first, *listed)


def _answered(
    placed: Placed, role: str, data_format: str, prompt: tuple[Message, ...], dataset: Dataset
) -> tuple[Message, ...]:
    """Return the prompt with the answer in the column of a role: a text, its turn, or the whole conversation."""
    name, found = column(role, dataset), value(placed, role, data_format, dataset)
    if isinstance(found, list):
        listed = read_turns(found, name, placed.where)
        whole = listed if listed[: len(prompt)] == prompt else (*prompt, *listed)
    elif found is None or isinstance(found, str):
        if not prompt or prompt[-1].role != "user":
            missing = column("prompt", dataset)
            raise invalid(
                placed.where,
                f"no column {missing}, which the answer in {name} is to; found: {_found(placed)}: add it, or give its"
                " other name as dataset.columns.prompt",
            )
        whole = (*prompt, Message("assistant", text(placed, role, data_format, dataset)))
    else:
        raise invalid(
            placed.where,
            f"column {name} is {kind(found)}, neither text nor a list of {{role, content}}: write one of these, or"
            " leave the row out",
        )
    check_order(whole, placed.where)
    if whole[-1].role != "assistant":
        raise invalid(
            placed.where,
            f"column {name} ends with a turn of the {whole[-1].role}, not with an answer: end it with an assistant's",
        )
    if prompt and any(message.role == "user" for message in prompt) and len(whole) != len(prompt) + 1:
        raise invalid(
            placed.where,
            f"column {name} has several turns after the prompt; one answer is compared: move the others to the prompt",
        )
    return whole


def _found(placed: Placed) -> str:
    return ", ".join(placed.row) or "none"
