"""Reward models by trl: a head that gives a whole answer one number."""

from collections.abc import Sequence
from typing import ClassVar

from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from lorikeet_api.objectives import Reward as Settings
from lorikeet_run.tokens import Pair, Tokens
from lorikeet_trainer.evaluate import Passes, each
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.objectives.objective import Objective, Setting, halves, ids, sequences, told_apart
from lorikeet_trainer.state import Evaluation


class RewardRun(Guarded, RewardTrainer):
    """trl's trainer, guarded."""


class Reward(Objective[Pair]):
    """A higher number for chosen answers than for rejected ones."""

    figures: ClassVar = {"margin": "margin", "accuracy": "accuracy"}

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def trainer(self, setting: Setting, rows: Sequence[Pair]) -> Guarded:
        """Return trl's trainer on an epoch's rows."""
        config = RewardConfig(
            **setting.arguments(len(rows)),
            center_rewards_coefficient=self._settings.center,
            max_length=None,
            disable_dropout=True,
        )
        dataset = Dataset.from_dict(
            {
                "chosen_ids": [ids(row.chosen, 0) for row in rows],
                "rejected_ids": [ids(row.rejected, 0) for row in rows],
            }
        )
        return RewardRun(
            model=setting.trainable.model, processing_class=setting.tokenizer, args=config, train_dataset=dataset
        )

    def asked(self, held_out: Sequence[Pair]) -> list[Tokens]:
        """Return nothing: such a model writes no answers."""
        return []

    def evaluate(
        self, model: nn.Module, held_out: Sequence[Pair], passes: Passes, reference: Tensor | None = None
    ) -> Evaluation:
        """Return how the numbers tell the pairs apart."""

        def scored(batch: dict[str, Tensor]) -> Tensor:
            found: Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return found.squeeze(-1)

        return told_apart(*halves(each(model, sequences(held_out), passes, scored)))
