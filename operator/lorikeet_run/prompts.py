"""Prompts out of rows: the format prompt."""

import json
from collections.abc import Sequence

from lorikeet_api.training import Dataset
from lorikeet_run.columns import column, value
from lorikeet_run.conversation import check_order, read_tools
from lorikeet_run.examples import Example, Prompt
from lorikeet_run.files import Placed, invalid, kind
from lorikeet_run.preferences import turns_before


def prompt(placed: Placed, dataset: Dataset, columns: Sequence[str]) -> Prompt:
    """Return a row of the format prompt, with the columns that rewards read. Raises RunError (DataInvalid)."""
    value(placed, "prompt", "prompt", dataset)
    turns = turns_before(placed, "prompt", dataset)
    check_order(turns, placed.where)
    tools = read_tools(placed, column("tools", dataset))
    asked = Example(placed.where, "completion", messages=turns, tools=tools, asks=True)
    return Prompt(asked, {name: _matched(placed, name) for name in columns})


def _matched(placed: Placed, name: str) -> str:
    """Return what an answer is to be, as a text."""
    if name not in placed.row:
        found = ", ".join(placed.row) or "none"
        raise invalid(
            placed.where,
            f"no column {name}, which a match of objective.rlhf.rewards reads; found: {found}: add it,"
            " or correct the name in the match",
        )
    found = placed.row[name]
    if isinstance(found, str):
        return found
    if isinstance(found, bool | int | float):
        return json.dumps(found)
    raise invalid(placed.where, f"column {name} is {kind(found)}; an answer is matched with text, a number or a truth")
