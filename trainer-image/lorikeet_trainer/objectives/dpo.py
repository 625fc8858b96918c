"""Direct preference optimisation by trl; the reference is the model as it is before training."""

from collections.abc import Sequence
from typing import Any, ClassVar

from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from lorikeet_api.objectives import Dpo as Settings
from lorikeet_run.tokens import Pair
from lorikeet_trainer.evaluate import Passes, joined, log_probabilities
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.methods.full import Full
from lorikeet_trainer.objectives.objective import (
    Objective,
    Setting,
    halves,
    paired,
    reference_of,
    sequences,
    told_apart,
)
from lorikeet_trainer.state import Evaluation


class DpoRun(Guarded, DPOTrainer):
    """trl's trainer, guarded, on rows that we tokenised ourselves."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        for role in ("chosen", "rejected"):
            answers = zip(dataset["prompt_ids"], dataset[f"{role}_ids"], strict=True)
            found = reference_of(self, [joined(*each) for each in answers], batch_size)
            dataset = dataset.add_column(f"ref_{role}_logps", found)
        return dataset


class Dpo(Objective[Pair]):
    """Chosen answers likelier than rejected ones, against the reference."""

    figures: ClassVar = {"rewards/margins": "margin", "rewards/accuracies": "accuracy"}

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def trainer(self, setting: Setting, rows: Sequence[Pair]) -> Guarded:
        """Return trl's trainer on an epoch's rows."""
        settings = self._settings
        config = DPOConfig(
            **setting.arguments(len(rows)),
            beta=settings.beta,
            loss_type=[settings.loss],
            label_smoothing=settings.label_smoothing or 0.0,
            max_length=None,
            disable_dropout=True,
            # Of adapters trl keeps a frozen copy beside; a second whole model would not fit where the first one does.
            precompute_ref_log_probs=isinstance(setting.trainable, Full),
        )
        return DpoRun(
            model=setting.trainable.model,
            processing_class=setting.tokenizer,
            args=config,
            train_dataset=paired(rows),
        )

    def reference(self, model: nn.Module, held_out: Sequence[Pair], passes: Passes) -> Tensor:
        """Return the log-probabilities of the answers."""
        return log_probabilities(model, sequences(held_out), passes)

    def evaluate(
        self, model: nn.Module, held_out: Sequence[Pair], passes: Passes, reference: Tensor | None
    ) -> Evaluation:
        """Return how the rewards that the model implies tell the pairs apart, whatever the loss of training."""
        assert reference is not None  # noqa: S101 - there always is one
        rewards = self._settings.beta * (self.reference(model, held_out, passes) - reference)
        return told_apart(*halves(rewards))
