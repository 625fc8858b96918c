"""Kahneman-Tversky optimisation by trl; the reference is the model as it is before training."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer

from lorikeet_api.objectives import Kto as Settings
from lorikeet_run.tokens import Judged, Tokens
from lorikeet_trainer.evaluate import Passes, joined, log_probabilities
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.methods.full import Full
from lorikeet_trainer.objectives.objective import Objective, Setting, ids, reference_of, share_above
from lorikeet_trainer.state import Evaluation


class KtoRun(Guarded, KTOTrainer):
    """trl's trainer, guarded, on rows that we tokenised ourselves."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        for column, answers in (("ref_logps", "completion_ids"), ("ref_KL_logps", "KL_completion_ids")):
            both = zip(dataset["prompt_ids"], dataset[answers], strict=True)
            dataset = dataset.add_column(column, reference_of(self, [joined(*each) for each in both], batch_size))
        return dataset


class Kto(Objective[Judged]):
    """Good answers likelier and bad ones less likely, against the reference and how far the model has moved at all."""

    figures: ClassVar = {"rewards/margins": "margin", "kl": "kl"}

    def __init__(self, settings: Settings, max_length: int) -> None:
        """Take the longest sequence (tokens), also of a prompt with another row's answer."""
        self._settings = settings
        self._max_length = max_length

    def trainer(self, setting: Setting, rows: Sequence[Judged]) -> Guarded:
        """Return trl's trainer on an epoch's rows."""
        settings = self._settings
        config = KTOConfig(
            **setting.arguments(len(rows)),
            beta=settings.beta,
            desirable_weight=settings.desirable_weight,
            undesirable_weight=settings.undesirable_weight,
            max_length=None,
            disable_dropout=True,
            # Of adapters trl keeps a frozen copy beside; a second whole model would not fit where the first one does.
            precompute_ref_log_probs=isinstance(setting.trainable, Full),
            # Each answer goes with another's prompt of its batch, so the batches are made here.
            train_sampling_strategy="sequential",
        )
        shuffled = list(rows)
        random.Random(config.seed).shuffle(shuffled)  # noqa: S311 - reproducible, not secret
        return KtoRun(
            model=setting.trainable.model,
            processing_class=setting.tokenizer,
            args=config,
            train_dataset=_judged(shuffled, config.per_device_train_batch_size, self._max_length),
        )

    def asked(self, held_out: Sequence[Judged]) -> list[Tokens]:
        """Return the good answers with their prompts."""
        return [row.tokens for row in held_out if row.good]

    def reference(self, model: nn.Module, held_out: Sequence[Judged], passes: Passes) -> Tensor:
        """Return the log-probabilities of each row's answer, then those of another row's answer to its prompt."""
        return log_probabilities(
            model, [row.tokens for row in held_out] + _mismatched(held_out, self._max_length), passes
        )

    def evaluate(
        self, model: nn.Module, held_out: Sequence[Judged], passes: Passes, reference: Tensor | None
    ) -> Evaluation:
        """Return KTO's loss (equation 7 of its paper), the drift estimated over all held-out rows together."""
        assert reference is not None  # noqa: S101 - there always is one
        settings = self._settings
        ratios = self.reference(model, held_out, passes) - reference
        own, others = torch.chunk(ratios, 2)
        drift = others.mean().clamp(min=0)
        good = torch.tensor([row.good for row in held_out], device=own.device)
        sign = torch.where(good, 1.0, -1.0)
        weight = torch.where(good, settings.desirable_weight, settings.undesirable_weight)
        rewards = settings.beta * (own - drift)
        loss = (weight * (1 - torch.sigmoid(sign * rewards))).mean()
        both = bool(good.any()) and not bool(good.all())
        margin = float(rewards[good].mean() - rewards[~good].mean()) if both else None
        return Evaluation(loss=float(loss), accuracy=share_above(sign * rewards), margin=margin)


def _judged(rows: Sequence[Judged], batch_size: int, max_length: int) -> Dataset:
    """Return rows as trl's collator takes them; each with the answer of the row before it in its batch.

    A row that is alone in the last batch gets that of the row before it all the same.
    """
    answers = [ids(row.tokens, row.tokens.answer) for row in rows]
    others = []
    for start in range(0, len(answers), batch_size):
        batch = answers[start : start + batch_size]
        others += [batch[-1], *batch[:-1]] if len(batch) > 1 else [answers[start - 1]]
    others = [other[: max(1, max_length - row.tokens.answer)] for row, other in zip(rows, others, strict=True)]
    return Dataset.from_dict(
        {
            "prompt_ids": [ids(row.tokens, 0, row.tokens.answer) for row in rows],
            "completion_ids": answers,
            "KL_completion_ids": others,
            "label": [row.good for row in rows],
        }
    )


def _mismatched(rows: Sequence[Judged], max_length: int) -> list[Tokens]:
    """Return each row's prompt with another one's answer: not a neighbour's, which often has the same prompt."""
    half = len(rows) // 2
    others = [*rows[half:], *rows[:half]]
    return [row.tokens.answered_by(other.tokens, max_length) for row, other in zip(rows, others, strict=True)]
