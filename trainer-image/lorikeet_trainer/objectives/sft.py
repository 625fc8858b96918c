"""Supervised fine-tuning by trl, on rows that we tokenised and labelled ourselves."""

from collections.abc import Sequence

from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lorikeet_run.tokens import Tokens
from lorikeet_trainer.evaluate import Passes, log_probabilities
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.objectives.objective import Objective, Setting, ids
from lorikeet_trainer.state import Evaluation


class SftRun(Guarded, SFTTrainer):
    """trl's trainer, guarded."""


class Sft(Objective[Tokens]):
    """The next token's likelihood, over the tokens that count."""

    def trainer(self, setting: Setting, rows: Sequence[Tokens]) -> Guarded:
        """Return trl's trainer on an epoch's rows."""
        config = SFTConfig(
            **setting.arguments,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
            loss_type="nll",
        )
        dataset = Dataset.from_dict(
            {"input_ids": [ids(row, 0) for row in rows], "labels": [row.labels.tolist() for row in rows]}
        )
        return SftRun(
            model=setting.trainable.model, processing_class=setting.tokenizer, args=config, train_dataset=dataset
        )

    def evaluate(
        self, model: nn.Module, held_out: Sequence[Tokens], passes: Passes, reference: Tensor | None = None
    ) -> Evaluation:
        """Return the mean negative log-likelihood of a counted token, in nats."""
        found = log_probabilities(model, held_out, passes)
        return Evaluation(loss=-float(found.sum()) / sum(row.trained for row in held_out))
