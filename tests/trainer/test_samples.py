"""What a model answers to held-out prompts, and that asking it changes nothing."""

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from lorikeet_run.report import Answer
from lorikeet_run.tokenizer import load_tokenizer
from lorikeet_run.tokens import IGNORED, Tokens
from lorikeet_trainer import samples
from tests.trainer import tiny

pytestmark = pytest.mark.trainer

PROMPTS = ("What colour is coal?", "Tell me the colour of sea.", "Say: a, b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"), pretrained=True)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(folder)


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return cast(PreTrainedModel, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def row(prompt: list[int], answer: list[int], after: list[int] | None = None) -> Tokens:
    ids = np.array([*prompt, *answer, *(after or [])], dtype=np.int32)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORED
    labels[len(prompt) + len(answer) :] = IGNORED
    return Tokens(ids, labels)


def asked(tokenizer: PreTrainedTokenizerBase) -> list[samples.Question]:
    ids: Any = tokenizer([f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in PROMPTS])
    return samples.questions([row(one, [7, 8]) for one in ids["input_ids"]])


def word_by_word(model: PreTrainedModel, prompt: NDArray[np.int32], stop: int) -> tuple[list[int], bool]:
    """Return the likeliest next tokens, one after the other, and whether they ended."""
    ids: list[int] = prompt.tolist()
    torch.nn.Module.eval(model)
    for _ in range(samples.ANSWER_TOKENS):
        with torch.no_grad():
            following = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if following == stop:
            return ids[len(prompt) :], True
        ids.append(following)
    return ids[len(prompt) :], False


def test_an_answer_is_the_likeliest_word_after_the_other(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    questions, stop = asked(tokenizer), int(cast(Any, tokenizer.eos_token_id))
    answers = samples.answers(model, tokenizer, questions, frozenset({stop}), None)
    expected = []
    for question in questions:
        said, ended = word_by_word(model, question.prompt, stop)
        expected.append(Answer(text=str(tokenizer.decode(said, skip_special_tokens=True)).strip(), ended=ended))
    assert answers == expected
    assert answers[0] == Answer(text="yellow", ended=True), "the pretrained model knows the wrong colours"


def test_a_mixture_of_experts_answers_while_its_routers_are_trained(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    experts = cast(Any, AutoModelForCausalLM.from_pretrained(tiny.write_experts(tmp_path), dtype=torch.float32))
    experts.config.output_router_logits = True
    answers = samples.answers(experts, tokenizer, asked(tokenizer), frozenset(), None)
    assert len(answers) == len(PROMPTS)
    assert experts.config.output_router_logits


def test_an_answer_without_an_end_is_cut_off(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    answers = samples.answers(model, tokenizer, asked(tokenizer), frozenset(), None)
    assert {answer.ended for answer in answers} == {False}


def test_asking_leaves_random_state_mode_and_configuration_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model.train()
    before = torch.get_rng_state(), random.getstate(), cast(Any, model).generation_config.to_dict()
    assert samples.answers(model, tokenizer, asked(tokenizer), frozenset({4}), None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert cast(Any, model).generation_config.to_dict() == before[2]
    assert all(module.training for module in model.modules())
    loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()  # nothing that was cached stands in its way


def test_a_model_that_cannot_answer_has_no_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(model, "generate", full)
    model.train()
    answers = samples.answers(model, tokenizer, asked(tokenizer), frozenset({4}), None)
    assert answers == []
    assert model.training
    assert samples.side_by_side(asked(tokenizer), answers, answers, tokenizer) == []


def test_questions_are_the_first_examples_with_a_prompt() -> None:
    plain = row([1], [2, 3, 4])
    long = row([5] * (samples.PROMPT_TOKENS + 1), [6])
    turns = row([1, 2, 3], [7, 8], after=[9, 9])
    endless = row([1, 2], [6] * 200)
    found = samples.questions([plain, long, turns, endless, *[row([1, 2], [3])] * 5])
    assert [question.prompt.tolist() for question in found] == [[1, 2, 3], [1, 2], [1, 2], [1, 2]]
    assert found[0].expected.tolist() == [7, 8]
    assert found[1].expected.tolist() == [6] * samples.ANSWER_TOKENS
