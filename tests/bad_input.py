"""What users get wrong in their rows, and what each is told of it: the same wherever the rows are looked at."""

from dataclasses import dataclass, field
from typing import Any, Final

from tests.trainer import tiny

PAIR: Final = {"prompt": "How many users are there?", "chosen": "SELECT COUNT(*) FROM users;", "rejected": "Many."}
USER: Final = {"role": "user", "content": "How many users are there?"}
ANSWER: Final = {"role": "assistant", "content": "SELECT COUNT(*) FROM users;"}
SYSTEM: Final = {"role": "system", "content": "Answer with SQL."}
GOOD: Final = {"messages": [SYSTEM, USER, ANSWER]}


@dataclass(frozen=True)
class BadRows:
    """Rows of which the last one is wrong."""

    rows: list[tiny.Row]
    message: str
    """Expression for the whole message, behind the name of the file: cause and fix."""
    spec: dict[str, Any] = field(default_factory=dict)
    """The rest of the request, but for the data's URI."""
    template: str = tiny.CHATML
    """Chat template of the base model."""
    as_tokens: bool = False
    """Whether it shows in the rows' tokens alone, which `lorikeet validate` does not look at."""


def _chat(*messages: tiny.Row) -> list[tiny.Row]:
    return [GOOD, {"messages": list(messages)}]


_DPO: Final[dict[str, Any]] = {"objective": {"dpo": {}}}

BAD_ROWS: Final = {
    "a preference without a rejected answer": BadRows(
        [PAIR, {name: PAIR[name] for name in ("prompt", "chosen")}],
        r", line 2: no column rejected; found: prompt, chosen .*: add it, .* or leave the row out",
        _DPO,
    ),
    "a preference of two equal answers": BadRows(
        [PAIR, {**PAIR, "rejected": PAIR["chosen"]}],
        r", line 2: chosen equals rejected, so there is nothing to prefer: remove the row",
        _DPO,
    ),
    "a conversation that the assistant begins": BadRows(
        _chat(ANSWER, USER, ANSWER),
        r", line 2: the conversation must begin with a user's turn, .*: put one there, or leave the row out",
    ),
    "a conversation without a user": BadRows(
        _chat(SYSTEM, ANSWER),
        r", line 2: the conversation must begin with a user's turn, .*: put one there, or leave the row out",
    ),
    "a system message that comes late": BadRows(
        _chat(USER, SYSTEM, ANSWER),
        r", line 2: a system message stands only at the beginning: move it there, or leave it out",
    ),
    "an assistant's turn that is empty": BadRows(
        _chat(USER, {**ANSWER, "content": ""}),
        r", line 2: message 2 \(assistant\) is empty: leave out the turn, or the row",
    ),
    "a conversation without an answer": BadRows(
        _chat(USER),
        r", line 2: no assistant turn to train on: add one, leave the row out, or set trainOn to all",
    ),
    "a field that the chat template needs": BadRows(
        [GOOD],
        r", line 1: the base model's chat template needs what the conversation does not have \(.*thought.*\): add it,"
        " or choose a base model whose chat template does without",
        template="{{ messages[0].thought.strip() }}" + tiny.CHATML,
        as_tokens=True,
    ),
    "roles that the chat template does not take": BadRows(
        [GOOD],
        r", line 1: the base model's chat template refuses the conversation \(no system message, please\):"
        " correct it or leave it out",
        template="{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}{% endif %}"
        + tiny.CHATML,
        as_tokens=True,
    ),
    "prompts that are longer than maxLength": BadRows(
        [GOOD],
        r"no training example is left: of all 1 maxLength 8 leaves .*: raise maxLength",
        {"dataset": {"maxLength": 8}},
        as_tokens=True,
    ),
}
