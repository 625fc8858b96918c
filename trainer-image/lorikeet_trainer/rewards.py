"""What gives answers their rewards while a run is at work: rules, and reward models beside the one that is trained."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorikeet_api.contract import Manifest, RunContract
from lorikeet_run.batches import batched
from lorikeet_run.errors import RunError
from lorikeet_run.reward_models import BASE, PUBLISHED, is_whole
from lorikeet_run.rewards import Rule, rules
from lorikeet_run.tokens import Tokens
from lorikeet_storage.publish import MANIFEST
from lorikeet_trainer import model
from lorikeet_trainer.device import Compute
from lorikeet_trainer.evaluate import Passes, computing, joined, pad
from lorikeet_trainer.state import Layout

Reward = Callable[..., list[float]]
"""Gives each answer its reward, as trl asks for it: by `prompts`, `completions`, `completion_ids` and `row`."""


def make_rewards(
    contract: RunContract, layout: Layout, tokenizer: PreTrainedTokenizerBase, compute: Compute, passes: Passes
) -> list[Reward]:
    """Return the rewards of an rlhf run, in the contract's order; `passes` are those of its models. Raises RunError."""
    folders = iter(sorted(layout.rewards.iterdir(), key=lambda each: int(each.name)) if layout.rewards.exists() else [])
    made: list[Reward] = []
    for number, rule in enumerate(rules(contract.objective)):
        if rule is None:
            scorer = _load(next(folders), layout.model, tokenizer, compute)
            made.append(_named(_by_model(scorer, passes), number))
        else:
            made.append(_named(_by_rule(rule), number))
    return made


def _named(reward: Reward, number: int) -> Reward:
    """Give a reward the name by which trl tells it from the others."""
    reward.__name__ = str(number)
    return reward


def _by_rule(rule: Rule) -> Reward:
    def reward(*, completions: Sequence[str], row: Sequence[str], **_: Any) -> list[float]:
        return [rule(answer.strip(), json.loads(columns)) for answer, columns in zip(completions, row, strict=True)]

    return reward


def _by_model(scorer: nn.Module, passes: Passes) -> Reward:
    def reward(*, prompts: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        # The very tokens, as it has learnt from them: no text in between.
        rows = [joined(*each) for each in zip(prompts, completion_ids, strict=True)]
        return [number for some in batched(rows, passes.batch_size) for number in _score(scorer, some, passes)]

    return reward


def _score(scorer: nn.Module, rows: Sequence[Tokens], passes: Passes) -> list[float]:
    device = next(scorer.parameters()).device
    batch = pad(rows, passes.pad_id, device)
    with torch.inference_mode(), computing(scorer, passes.autocast):
        found = scorer(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if not torch.isfinite(found).all():
        # trl would leave such an answer out.
        raise RunError(
            "ModelInvalid",
            "a reward model gives an answer no finite number: its weights are damaged, or made for another precision;"
            " train it again",
        )
    numbers: list[float] = found.squeeze(-1).double().tolist()
    return numbers


def _load(folder: Path, base: Path, tokenizer: PreTrainedTokenizerBase, compute: Compute) -> nn.Module:
    """Return a reward model, frozen; an adapter's base is its own, or that of the run. Raises RunError."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    trained, published = manifest.contract, folder / PUBLISHED
    whole = is_whole(manifest)
    its_base = published if whole else folder / BASE if (folder / BASE).exists() else base
    try:
        loaded: Any = model.load(its_base, trained.method, trained.objective, compute, frozen=True)
    except RunError as error:
        raise RunError(error.reason, f"the reward model of {trained.name}: {error.message}") from error
    # By which it finds the end of an answer.
    loaded.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    made: Any = loaded
    if not whole:
        # What an adapter has trained lies in float32, as it did in training: what peft makes of it, and the head.
        getattr(loaded, model.REWARD_HEAD).float()
        made = PeftModel.from_pretrained(loaded, str(published))
    return cast(nn.Module, made.eval().requires_grad_(False))
