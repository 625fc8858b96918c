"""What the model answers to a few held-out prompts, before training and after it: the report shows both.

Greedy, so that nothing is drawn at random, and the same on every rank: no rank waits for another one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lorikeet_run import log
from lorikeet_run.errors import explain
from lorikeet_run.report import Answer, Sample
from lorikeet_run.tokens import IGNORED, Tokens
from lorikeet_trainer.evaluate import computing, evaluation_mode

QUESTIONS: Final = 4
ANSWER_TOKENS: Final = 64
PROMPT_TOKENS: Final = 1024
"""Longer prompts are passed over: to answer them could take more memory than to train on them does."""


FEWEST_GRAMS: Final = 8


@dataclass(frozen=True, slots=True)
class Question:
    """One held-out example, taken apart."""

    prompt: NDArray[np.int32]
    """What precedes the first trained token."""
    expected: NDArray[np.int32]
    """The trained tokens that follow it, at most ANSWER_TOKENS."""


def questions(rows: Sequence[Tokens]) -> list[Question]:
    """Return the first examples that have a prompt: in a plain text all but the first token is trained."""
    found: list[Question] = []
    for row in rows:
        begin = row.answer
        if 1 < begin <= PROMPT_TOKENS:
            rest = row.labels[begin:]
            end = int((rest == IGNORED).argmax()) if (rest == IGNORED).any() else len(rest)
            found.append(Question(row.input_ids[:begin], rest[: min(end, ANSWER_TOKENS)]))
        if len(found) == QUESTIONS:
            break
    return found


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Question],
    stop_ids: frozenset[int],
    autocast: torch.dtype | None,
) -> list[Answer]:
    """Return what the model says to each question until one of `stop_ids`; nothing if it cannot.

    Neither weights nor random state nor the mode, training or not, are changed. A model that trains and cannot
    answer, or has no memory left for it, is worth more than its samples: the log has why. Raises the latter's error
    where the weights are sharded.
    """
    device = next(model.parameters()).device
    pad_id = int(tokenizer.pad_token_id or 0)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=ANSWER_TOKENS,
        eos_token_id=sorted(stop_ids) or None,
        pad_token_id=pad_id,
        use_cache=True,
    )
    try:
        with evaluation_mode(model), computing(model, autocast):
            batch = pad_left([question.prompt.tolist() for question in asked], pad_id, device)
            made: Tensor = cast(Any, model).generate(**batch, **_quiet(model), generation_config=config)
    except Exception as error:  # whatever it was, what is trained is not lost for it
        if isinstance(model, FSDPModule) and explain(error).reason == "OutOfMemory":
            raise  # others may have the memory, and wait for this rank's part of the weights
        log.event("samples_left_out", error=type(error).__name__, message=str(error))
        return []
    said = made[:, batch["input_ids"].shape[1] :].tolist()
    return [_answer(ids, tokenizer, stop_ids) for ids in said]


def _quiet(model: nn.Module) -> dict[str, bool]:
    """Return what keeps a mixture of experts from its routers' loss, which training has it compute: it is of whole
    sequences, and fails on one token after the other."""
    routed = getattr(cast(Any, model).config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if routed else {}


def side_by_side(
    asked: Sequence[Question], before: Sequence[Answer], after: Sequence[Answer], tokenizer: PreTrainedTokenizerBase
) -> list[Sample]:
    """Return each question with what was expected, and both answers; nothing where one of the two failed."""
    if not (before and after):
        return []
    return [
        Sample(
            prompt=str(tokenizer.decode(question.prompt.tolist())),
            expected=str(tokenizer.decode(question.expected.tolist(), skip_special_tokens=True)).strip(),
            before=first,
            after=last,
        )
        for question, first, last in zip(asked, before, after, strict=True)
    ]


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return prompts as one batch that ends where the answers begin."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, prompt in enumerate(prompts):
        ids[number, longest - len(prompt) :] = torch.tensor(prompt)
        mask[number, longest - len(prompt) :] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _answer(ids: list[int], tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> Answer:
    end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    text = str(tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
    return Answer(text=text, ended=end is not None, repeated=repeated(ids[:end]))


def repeated(ids: Sequence[int]) -> float:
    """Return the share of a text's 4-grams that stand in it before; 0 of one that is too short to tell."""
    grams = [tuple(ids[place : place + 4]) for place in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if len(grams) >= FEWEST_GRAMS else 0.0
