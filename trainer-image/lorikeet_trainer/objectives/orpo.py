"""Odds-ratio preference optimisation (arXiv:2403.07691). trl's own is experimental and tokenises rows itself."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from lorikeet_api.objectives import Orpo as Settings
from lorikeet_run.tokens import IGNORED, Pair
from lorikeet_trainer.evaluate import Passes, log_probabilities
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.objectives.objective import Objective, Setting, halves, paired, sequences, told_apart
from lorikeet_trainer.state import Evaluation


class OrpoRun(Guarded):
    """transformers' trainer with ORPO's loss."""

    loss_is_scaled_for_ga = False
    beta: float

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a batch of pairs, the chosen answers first."""
        mask = inputs.pop("completion_mask")
        labels = inputs["input_ids"].masked_fill(mask == 0, IGNORED)
        found = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
        return orpo_loss(found.log_probs.sum(1), mask[:, 1:].sum(1), self.beta)


class Orpo(Objective[Pair]):
    """Chosen answers likelier, and likelier than rejected ones, without a reference."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def trainer(self, setting: Setting, rows: Sequence[Pair]) -> Guarded:
        """Return a trainer on an epoch's rows."""
        model: Any = setting.trainable.model
        adapted = isinstance(model, PeftModel)
        add_fused_lm_head(model.get_base_model() if adapted else model)
        arguments = setting.arguments(len(rows))
        if adapted and arguments["activation_checkpointing"]:
            model.enable_input_require_grads()
        trainer = OrpoRun(
            model=model,
            processing_class=setting.tokenizer,
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=paired(rows),
            data_collator=DataCollatorForPreference(pad_token_id=int(setting.tokenizer.pad_token_id or 0)),
        )
        trainer.beta = self._settings.beta
        return trainer

    def evaluate(
        self, model: nn.Module, held_out: Sequence[Pair], passes: Passes, reference: Tensor | None = None
    ) -> Evaluation:
        """Return how the mean log-probabilities of tokens tell the pairs apart, and ORPO's loss."""
        rows = sequences(held_out)
        found = log_probabilities(model, rows, passes)
        lengths = torch.tensor([row.trained for row in rows], device=found.device)
        apart = told_apart(*halves(found / lengths))
        return apart.model_copy(update={"loss": float(orpo_loss(found, lengths, self._settings.beta))})


def orpo_loss(log_probabilities: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Return ORPO's loss (equations 6 and 7 of its paper).

    Args:
        log_probabilities: of whole answers, the chosen ones first: (2 * pairs,).
        lengths: their tokens: (2 * pairs,).
        beta: weight of the penalty.
    """
    chosen, rejected = halves((log_probabilities / lengths).float())
    odds = chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))
    likelihood = halves(log_probabilities)[0].sum() / halves(lengths)[0].sum()
    return -likelihood - beta * logsigmoid(odds).mean()


def _log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - exp(x)) for x <= 0; by -x where it is near nothing (Mächler 2012).

    An answer that is certain, as a short one may be in float32, has neither logarithm nor gradient: the last that has.
    """
    x = x.clamp(max=-1e-6)
    return torch.where(x > -0.6931471805599453, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
