"""Tools in conversations, by the templates of real models: what is written of them, and what of that is trained."""

import json
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lorikeet_api.training import TrainOn
from lorikeet_run.conversation import Call, Message
from lorikeet_run.errors import RunError
from lorikeet_run.examples import Example
from lorikeet_run.render import Renderer, choose_template
from lorikeet_run.tokens import IGNORED, Tokens
from tests.trainer import tiny

pytestmark = pytest.mark.trainer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "A city"}}},
    },
}
TOOLS = json.dumps([WEATHER])
ASKED, DRY, DONE = Message("user", "Rain in Bonn?"), Message("tool", "dry"), Message("assistant", "No rain.")


def calling(*cities: str) -> Message:
    return Message("assistant", "", tuple(Call("weather", json.dumps({"city": city})) for city in cities))


def example(*messages: Message, tools: str = TOOLS, train_on: TrainOn = "assistant") -> Example:
    return Example("row 1", train_on, messages=messages, tools=tools)


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the chat template of a real model, as trl has it."""
    made = tiny.tokenizer(files("trl").joinpath("chat_templates", f"{name}.jinja").read_text())
    if name.startswith("llama"):
        headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        made.add_special_tokens({"additional_special_tokens": headers})
        made.eos_token = "<|eot_id|>"
    return made


def one(made: PreTrainedTokenizerFast, of: Example) -> Tokens:
    renderer = Renderer(made, frozenset([int(made.eos_token_id)]), date="2026-11-23", max_length=4096, overlong="fail")
    (row,) = renderer.render([of]).rows
    assert isinstance(row, Tokens)
    return row


def trained(made: PreTrainedTokenizerFast, row: Tokens) -> list[str]:
    """Return the texts that the loss counts, one for each run of tokens."""
    counted = np.flatnonzero(row.labels != IGNORED)
    runs = np.split(counted, np.flatnonzero(np.diff(counted) > 1) + 1)
    return [str(made.decode(row.input_ids[run].tolist())) for run in runs]


CALL = {
    "qwen2_5": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>',
    "llama3_1": '{"name": "weather", "parameters": {"city": "Bonn"}}<|eot_id|>',
}
END = {"qwen2_5": "<|im_end|>", "llama3_1": "<|eot_id|>"}


@pytest.mark.parametrize("name", CALL)
def test_calls_are_trained_and_results_are_not(name: str) -> None:
    made = tokenizer(name)
    row = one(made, example(ASKED, calling("Bonn"), DRY, DONE))
    assert trained(made, row) == [CALL[name], "No rain." + END[name]]
    text = str(made.decode(row.input_ids.tolist()))
    assert "dry" in text
    assert "Today's weather" in text
    assert trained(made, one(made, example(ASKED, calling("Bonn"), DRY, DONE, train_on="lastTurn"))) == [
        "No rain." + END[name]
    ]


@pytest.mark.parametrize("name", CALL)
def test_the_tokens_are_those_of_transformers(name: str) -> None:
    made = tokenizer(name)
    function = {"name": "weather", "arguments": {"city": "Bonn"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Rain in Bonn?"},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "content": "dry"},
        {"role": "assistant", "content": "No rain."},
    ]
    encoded: Any = made.apply_chat_template(messages, tools=[WEATHER], return_dict=True)
    assert one(made, example(ASKED, calling("Bonn"), DRY, DONE)).input_ids.tolist() == encoded["input_ids"]


def test_several_calls_are_one_turn() -> None:
    made = tokenizer("qwen2_5")
    (calls, answer) = trained(made, one(made, example(ASKED, calling("Bonn", "Kiel"), DRY, DRY, DONE)))
    assert (calls.count("<tool_call>"), "Kiel" in calls, answer) == (2, True, "No rain.<|im_end|>")


def test_a_template_that_takes_one_call_refuses_two_by_row() -> None:
    with pytest.raises(RunError, match=r"row 1: .*single tool-calls at once"):
        one(tokenizer("llama3_1"), example(ASKED, calling("Bonn", "Kiel"), DRY, DONE))


FIRST_ONLY = tiny.CHATML.replace(
    "message['content']", "(message.tool_calls[0]|string if message.tool_calls else message.content)"
)
UNWRITTEN: dict[str, tuple[str | None, Example, str]] = {
    "tools": (tiny.CHATML, example(ASKED, DONE), "does not write the tools that the conversation may call"),
    "calls": (tiny.CHATML, example(ASKED, calling("Bonn"), DRY, DONE, tools=""), "does not write the call of weather"),
    "the second call": (FIRST_ONLY, example(ASKED, calling("Bonn", "Kiel"), DRY, tools=""), "the call of weather"),
    "results": (
        "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content ~ m.tool_calls }}{% endif %}{% endfor %}",
        example(ASKED, calling("Bonn"), DRY, DONE, tools="", train_on="all"),
        "does not write tools' results",
    ),
    "tools by Lorikeet's template": (None, example(ASKED, DONE), "does not write the tools"),
    "calls by Lorikeet's template": (None, example(ASKED, calling("Bonn"), tools=""), "does not write the call"),
}


@pytest.mark.parametrize("what", UNWRITTEN)
def test_what_a_template_does_not_write_is_refused(what: str) -> None:
    template, of, words = UNWRITTEN[what]
    made = tiny.tokenizer(template)
    choose_template(made, [of])
    with pytest.raises(RunError, match=rf"row 1: the base model's chat template .*{words}") as caught:
        one(made, of)
    assert caught.value.reason == "MethodNotApplicable"
    assert "choose a base model whose chat template does" in caught.value.message


def test_a_base_with_a_template_for_tools_alone_is_asked_for_it() -> None:
    made = tiny.tokenizer(tiny.CHATML)
    made.chat_template = {"default": tiny.CHATML, "tool_use": "{{ tools | tojson }}" + tiny.CHATML}
    assert "Today's weather" in str(made.decode(one(made, example(ASKED, DONE)).input_ids.tolist()))
    assert "weather" not in str(made.decode(one(made, example(ASKED, DONE, tools="")).input_ids.tolist()))
