"""Tokens and labels: against trl's own masks, at the borders, and in numbers; the loss on them."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.trainer.utils import add_fused_lm_head

from lorikeet_api import objectives as api
from lorikeet_api.contract import StorageAccess, Use
from lorikeet_api.training import Overlong, TrainOn
from lorikeet_run import render
from lorikeet_run.conversation import Message, Role
from lorikeet_run.errors import RunError
from lorikeet_run.examples import Example, Instance, Prompt
from lorikeet_run.render import Renderer, choose_template, renderers
from lorikeet_run.rendered import Counts, Rendered, check_stops
from lorikeet_run.tokenizer import load_tokenizer
from lorikeet_run.tokens import IGNORED, Prompted, Tokens
from lorikeet_trainer.evaluate import Passes
from lorikeet_trainer.objectives.sft import Sft
from tests import runs
from tests.trainer import tiny

pytestmark = pytest.mark.trainer

TALK = st.text(alphabet=st.sampled_from("abc .\näß☃"), min_size=1, max_size=12).filter(lambda text: bool(text.strip()))


def bundled(name: str) -> str:
    return files("trl").joinpath("chat_templates", name).read_text()


def conversation(*turns: str, train_on: TrainOn = "assistant", system: str = "") -> Example:
    said = [Message("user" if number % 2 == 0 else "assistant", turn) for number, turn in enumerate(turns)]
    return Example("row 1", train_on, messages=(*([Message("system", system)] if system else []), *said))


def renderer(tokenizer: PreTrainedTokenizerFast, overlong: Overlong = "drop", **more: Any) -> Renderer:
    values = {"date": "2026-11-23", "max_length": 4096, **more}
    return Renderer(tokenizer, frozenset([int(tokenizer.eos_token_id)]), overlong=overlong, **values)


def tokens(rendered: Rendered) -> list[Tokens]:
    return [row for row in rendered.rows if isinstance(row, Tokens)]


def one(example: Example, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Tokens:
    (row,) = tokens(renderer(tokenizer, **more).render([example]))
    return row


def trained(row: Tokens, tokenizer: PreTrainedTokenizerFast) -> str:
    return str(tokenizer.decode(row.labels[row.labels != IGNORED].tolist()))


@pytest.fixture(scope="module")
def chatml() -> PreTrainedTokenizerFast:
    return tiny.tokenizer(tiny.CHATML)


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return tiny.tokenizer(bundled("qwen2_5.jinja"))


@pytest.fixture(scope="module")
def llama() -> PreTrainedTokenizerFast:
    made = tiny.tokenizer(bundled("llama3.jinja"))
    made.add_special_tokens({"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]})
    made.eos_token = "<|eot_id|>"
    return made


def by_trl(made: PreTrainedTokenizerFast, messages: list[dict[str, str]], template: str) -> tuple[list[int], list[int]]:
    """Return ids and mask of assistant tokens as trl has them from its template with generation markers."""
    found: Any = made.apply_chat_template(
        messages, chat_template=bundled(template), return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], found["assistant_masks"]


def as_messages(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]


PAIRS = st.lists(TALK, min_size=2, max_size=6).map(lambda turns: turns[: len(turns) // 2 * 2])


@settings(max_examples=60, deadline=None)
@given(turns=PAIRS)
def test_the_mask_for_llama_is_trls(llama: PreTrainedTokenizerFast, turns: list[str]) -> None:
    row = one(conversation(*turns), llama)
    ids, mask = by_trl(llama, as_messages(turns), "llama3_training.jinja")
    assert row.input_ids.tolist() == ids
    assert (row.labels != IGNORED).astype(int).tolist() == mask


@settings(max_examples=60, deadline=None)
@given(turns=PAIRS)
def test_the_mask_for_qwen_lacks_only_what_no_engine_generates(qwen: PreTrainedTokenizerFast, turns: list[str]) -> None:
    """trl's markers there take in the line break of the prompt before an answer and the one after its stop token."""
    row = one(conversation(*turns, system="Be brief."), qwen)
    messages = [{"role": "system", "content": "Be brief."}, *as_messages(turns)]
    ids, mask = by_trl(qwen, messages, "qwen2_5_training.jinja")
    assert row.input_ids.tolist() == ids
    ours = (row.labels != IGNORED).tolist()
    for index, (mine, theirs) in enumerate(zip(ours, mask, strict=True)):
        if mine != bool(theirs):
            assert theirs
            assert qwen.decode([ids[index]]) == "\n"
            assert ids[index - 1] == qwen.eos_token_id or ours[index + 1]


def test_each_choice_of_tokens(chatml: PreTrainedTokenizerFast) -> None:
    turns = ("one", "two", "three", "four")
    said = {name: trained(one(conversation(*turns, train_on=name), chatml), chatml) for name in CHOICES}
    assert said == CHOICES | {"all": said["all"]}
    assert "three" in said["all"]


CHOICES: dict[TrainOn, str] = {
    "assistant": "two<|im_end|>four<|im_end|>",
    "lastTurn": "four<|im_end|>",
    "completion": "four<|im_end|>",
    "all": "",
}


def test_the_prompt_is_what_an_engine_is_asked(chatml: PreTrainedTokenizerFast) -> None:
    row = one(conversation("What colour is snow?", "white"), chatml)
    question = [{"role": "user", "content": "What colour is snow?"}]
    encoded: Any = chatml.apply_chat_template(question, add_generation_prompt=True, return_dict=True)
    asked = encoded["input_ids"]
    assert row.input_ids[: len(asked)].tolist() == asked
    assert (row.labels[: len(asked)] == IGNORED).all()
    assert (row.labels[len(asked)] != IGNORED).all()


def test_a_template_that_rewrites_earlier_turns_is_refused_for_all_of_them() -> None:
    template = "{% for m in messages %}{{ m.role[0] + (m.content if loop.last else '~') + '<|im_end|>' }}{% endfor %}"
    made = tiny.tokenizer(template + "{% if add_generation_prompt %}a{% endif %}")
    with pytest.raises(RunError, match="choose trainOn lastTurn or all") as caught:
        one(conversation("one", "two", "three", "four"), made)
    assert caught.value.reason == "MethodNotApplicable"
    assert "one" not in trained(one(conversation("x", "two", train_on="all"), made), made)


def test_a_template_that_asks_in_other_words_than_it_writes_is_refused_for_answers_alone() -> None:
    made = tiny.tokenizer(tiny.CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}"))
    with pytest.raises(RunError, match="choose trainOn all"):
        one(conversation("one", "two"), made)
    assert "two" in trained(one(conversation("one", "two", train_on="all"), made), made)


def test_a_prompt_ends_where_an_answer_begins(llama: PreTrainedTokenizerFast) -> None:
    asked = Example("row 1", "completion", messages=conversation("one", "two", "three").messages, asks=True)
    (row,) = renderer(llama).render([Prompt(asked, {"answer": "four"})]).rows
    assert isinstance(row, Prompted)
    turns = [message.for_template() for message in asked.messages]
    expected = llama.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert row.tokens.input_ids.tolist() == expected
    assert (row.trained, row.tokens.answer, row.columns) == (0, len(expected), {"answer": "four"})
    dropped = renderer(llama, max_length=len(expected) - 1).render([Prompt(asked, {})])
    assert (len(dropped.rows), dropped.dropped) == (0, 1)


def test_a_template_that_refuses_names_the_row() -> None:
    made = tiny.tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RunError, match=r"row 1: .*roles must alternate.*: correct it or leave it out"):
        one(conversation("one", "two"), made)


@pytest.mark.parametrize("needs", ["{{ messages[0].thought.strip() }}", "{{ messages[0].content + none }}"])
def test_a_template_that_needs_a_field_names_the_row_and_the_field(needs: str) -> None:
    with pytest.raises(RunError, match=r"row 1: .* needs what the conversation does not have .*(thought|None)"):
        one(conversation("one", "two"), tiny.tokenizer(needs + tiny.CHATML))


def test_a_template_that_is_none_is_the_models_fault() -> None:
    with pytest.raises(RunError, match=r"chat template is none .*: correct it") as caught:
        one(conversation("one", "two"), tiny.tokenizer("{% for m in messages %}{{ m.content }}"))
    assert caught.value.reason == "ModelInvalid"


def test_whether_one_role_may_speak_twice_is_the_templates_to_say(chatml: PreTrainedTokenizerFast) -> None:
    roles: tuple[Role, ...] = ("user", "user", "assistant", "assistant", "user")
    twice = Example("row 1", "assistant", messages=tuple(Message(role, f"{role} speaks") for role in roles))
    assert trained(one(twice, chatml), chatml) == "assistant speaks<|im_end|>" * 2


@pytest.mark.parametrize(
    "printed", ["{{ strftime_now('%d %b %Y') }}", "{% set d = strftime_now('%-d %B') %}{{ d }} 2020"]
)
def test_todays_date_is_the_contracts(printed: str) -> None:
    made = tiny.tokenizer("\n" + printed + tiny.CHATML)
    text = str(made.decode(one(conversation("a", "b"), made, date="2020-02-29").input_ids.tolist()))
    assert text.startswith(("\n29 Feb 2020<|", "\n29 February 2020<|"))


def test_plain_text_ends_with_a_stop_token_and_counts_whole(chatml: PreTrainedTokenizerFast) -> None:
    row = one(Example("row 1", "all", text="once upon"), chatml)
    assert chatml.decode(row.input_ids.tolist()) == "once upon<|im_end|>"
    assert row.labels.tolist() == [IGNORED, *row.input_ids[1:].tolist()]


LONG, SHORT = conversation("question", "word " * 50), conversation("question", "word")


def test_overlong_rows_are_dropped_and_counted(chatml: PreTrainedTokenizerFast) -> None:
    rendered = renderer(chatml, max_length=40).render([LONG, SHORT])
    assert (len(rendered.rows), rendered.dropped, rendered.counts.stop_percent) == (1, 1, 100)


def test_overlong_rows_are_truncated_and_lose_their_stop_token(chatml: PreTrainedTokenizerFast) -> None:
    rendered = renderer(chatml, "truncate", max_length=40).render([LONG, SHORT])
    assert len(tokens(rendered)[0].input_ids) == 40
    assert (rendered.dropped, rendered.counts.stop_percent) == (0, 50)
    assert check_stops(rendered.counts, "truncate") == 50


def test_a_prompt_that_fills_all_of_a_truncated_row_is_dropped(chatml: PreTrainedTokenizerFast) -> None:
    rendered = renderer(chatml, "truncate", max_length=10).render([conversation("question " * 20, "word")])
    assert (len(rendered.rows), rendered.dropped) == (0, 1)


def test_overlong_rows_fail_by_name(chatml: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RunError, match=r"row 1: .* tokens, more than maxLength 40") as caught:
        renderer(chatml, "fail", max_length=40).render([LONG])
    assert caught.value.exit_code == 65


def test_rows_are_rendered_as_they_are_read(chatml: PreTrainedTokenizerFast) -> None:
    """Held are those of the batches at work."""
    count, held = 3000, []

    class Read:
        def __iter__(self) -> Iterator[Instance]:
            for number in range(count):
                yield conversation("question", f"word {number}")
                if number in (0, count - 1):
                    held.append(sum(type(each) is Example for each in gc.get_objects()))

        def __len__(self) -> int:
            return count

    rendered = renderer(chatml).render(Read())
    assert (len(rendered.rows), rendered.answers, rendered.stopped) == (count, count, count)
    assert [trained(row, chatml) for row in tokens(rendered)[:2]] == ["word 0<|im_end|>", "word 1<|im_end|>"]
    assert held[-1] - held[0] < count / 2


def test_answers_without_a_stop_token_are_refused_above_five_percent() -> None:
    assert check_stops(Counts(answers=100, stopped=95), "drop") == 95
    with pytest.raises(RunError, match=r"6\.0 % of the answers end without a stop token"):
        check_stops(Counts(answers=60, stopped=60) + Counts(answers=40, stopped=34), "drop")
    assert check_stops(Counts(answers=10), "truncate") == 0
    assert check_stops(Counts(), "drop") is None


def test_a_template_whose_end_is_no_stop_token_is_noticed() -> None:
    made = tiny.tokenizer(tiny.CHATML.replace("<|im_end|>", "</s>"))
    assert renderer(made).render([SHORT]).counts.stop_percent == 0


def test_a_base_without_template_gets_ours() -> None:
    made = tiny.tokenizer(None)
    template = choose_template(made, [SHORT])
    row = one(SHORT, made)
    assert template.source == "lorikeet"
    assert made.decode(row.input_ids.tolist()) == "<s>### user\nquestion\n\n### assistant\nword</s>\n\n"
    assert trained(row, made) == "word</s>"


def test_a_template_that_the_general_set_alone_needs_is_no_part_of_the_result(tmp_path: Path) -> None:
    made = load_tokenizer(tiny.write_model(tmp_path, None))
    contract = runs.contract("s3://out/x", StorageAccess())
    sources: list[tuple[Use, list[Example]]] = [
        ("training", [Example("row 1", "all", text="word")]),
        ("general", [SHORT]),
    ]
    template, by = renderers(contract, tmp_path, made, sources)
    assert (template.source, made.chat_template) == ("none", None)
    (row,) = tokens(by["general"].render([SHORT]))
    assert made.decode(row.labels[row.labels != IGNORED].tolist()) == "word</s>"


def test_a_base_with_neither_template_nor_stop_token_is_refused() -> None:
    made = tiny.tokenizer(None)
    made.eos_token = None
    with pytest.raises(RunError, match=r"neither a chat template nor .*: add one to tokenizer_config\.json$"):
        choose_template(made, [SHORT])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            initializer_range=0.2, attention_dropout=0.0,
        )
    )  # fmt: skip
    add_fused_lm_head(made)
    return made


def test_the_loss_is_the_mean_over_tokens_at_every_batch_size(
    model: LlamaForCausalLM, chatml: PreTrainedTokenizerFast
) -> None:
    examples = [conversation("q", "word " * (number % 7 + 1)) for number in range(23)]
    rows = tokens(renderer(chatml).render(examples))
    found = [Sft(api.Sft()).evaluate(model, rows, Passes(size, 0)) for size in (1, 4, 23)]
    total, counted = 0.0, 0
    with torch.inference_mode():
        for row in rows:
            logits = model(input_ids=torch.tensor(row.input_ids[None].tolist())).logits[0, :-1]
            labels = torch.tensor(row.labels[1:].tolist())
            total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED))
            counted += int((labels != IGNORED).sum())
    for one_size in found:
        assert counted == sum(row.trained for row in rows)
        assert one_size.loss == pytest.approx(total / counted, rel=1e-5)
    assert model.training


def test_long_rows_are_tokenised_a_few_at_a_time(
    chatml: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "_BATCH_CHARACTERS", 1000)
    rows: list[Instance] = [
        *(conversation("Which?", "blue " * 60) for _ in range(6)),
        *(Prompt(replace(conversation("Which?"), asks=True), {"answer": "x" * 400}) for _ in range(6)),
    ]
    parts = [len(part.rows) for part in renderer(chatml).render_in_parts(rows, most_rows=1000, most_characters=1000)]
    assert sum(parts) == len(rows)
    assert max(parts) <= 4
