"""What all objectives have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase
from trl.trainer import dpo_trainer, kto_trainer

from lorikeet_run.rows import Epoch
from lorikeet_run.tokens import Judged, Pair, Prompted, Tokens
from lorikeet_trainer.evaluate import Passes, log_probabilities
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.methods import Trainable
from lorikeet_trainer.state import Evaluation

R = TypeVar("R", Tokens, Pair, Judged, Prompted)

for _module in (dpo_trainer, kto_trainer):
    # By a hash of all weights trl finds the reference's log-probabilities again, in a file of its own: see
    # `reference_of`. It would take minutes of a large model, and knows no sharded weights.
    cast(Any, _module).hash_module = lambda model: ""


@dataclass(frozen=True)
class Setting:
    """What an objective's trainer is made of, beside the rows."""

    trainable: Trainable
    tokenizer: PreTrainedTokenizerBase
    arguments: Callable[[int], dict[str, Any]]
    """Transformers' part of the configuration, by how many rows an epoch has."""
    packed: Path
    """Where packed sequences may lie, which are as much as the rows once more."""


class Objective(ABC, Generic[R]):
    """What is optimised, over rows of one kind."""

    figures: ClassVar[Mapping[str, str]] = {}
    """What trl logs beside the loss, by its names: how the loss curve calls it."""

    @abstractmethod
    def trainer(self, setting: Setting, rows: Epoch[R]) -> Guarded:
        """Return trl's trainer on an epoch's rows."""

    def reference(self, model: nn.Module, held_out: Sequence[R], passes: Passes) -> Tensor | None:
        """Return what the model before training makes of held-out rows, where the objective measures by that."""
        return None

    @abstractmethod
    def evaluate(self, model: nn.Module, held_out: Sequence[R], passes: Passes, reference: Tensor | None) -> Evaluation:
        """Return how the model does on held-out rows, of which `reference` is what it made before training."""

    def asked(self, held_out: Sequence[R]) -> list[Tokens]:
        """Return the held-out sequences whose prompts the report has answered."""
        return [row.parts[0] for row in held_out]

    def judge(self, model: nn.Module, held_out: Sequence[R], passes: Passes) -> Callable[[], Evaluation] | None:
        """Return how to find out how the model does on held-out rows; None where there are none.

        To be called before training.
        """
        if not held_out:
            return None
        reference = self.reference(model, held_out, passes)
        return lambda: self.evaluate(model, held_out, passes, reference)


def ids(tokens: Tokens, begin: int, end: int | None = None) -> list[int]:
    """Return some of a row's token ids."""
    found: list[int] = tokens.input_ids[begin:end].tolist()
    return found


def reference_of(trainer: Guarded, rows: Sequence[Tokens], batch_size: int) -> list[float]:
    """Return the log-probabilities of the answers by a trainer's model as it is now.

    In the place of trl's own, which hands them from rank to rank by a file that each rank looks for elsewhere.
    """
    pad_id = int(cast(Any, trainer.processing_class).pad_token_id or 0)
    found = log_probabilities(cast(nn.Module, trainer.model), rows, Passes(batch_size, pad_id, trainer.autocast))
    listed: list[float] = found.tolist()
    return listed


def paired(rows: Sequence[Pair]) -> Dataset:
    """Return pairs as trl's collators take them."""
    return Dataset.from_dict(
        {
            "prompt_ids": [ids(row.chosen, 0, row.chosen.answer) for row in rows],
            "chosen_ids": [ids(row.chosen, row.chosen.answer) for row in rows],
            "rejected_ids": [ids(row.rejected, row.rejected.answer) for row in rows],
        }
    )


def told_apart(chosen: Tensor, rejected: Tensor) -> Evaluation:
    """Return how rewards tell pairs apart: the loss is the negative log-likelihood of their order (Bradley-Terry)."""
    margins = chosen - rejected
    return Evaluation(
        loss=float(-logsigmoid(margins).mean()),
        accuracy=share_above(margins),
        margin=float(margins.mean()),
    )


def share_above(rewards: Tensor) -> float:
    """Return the share of numbers above nothing; one that is nothing counts half, as before any training."""
    return float(((rewards > 0).double() + 0.5 * (rewards == 0).double()).mean())


def sequences(rows: Sequence[Pair]) -> list[Tokens]:
    """Return the chosen answers of pairs, then the rejected ones."""
    return [row.chosen for row in rows] + [row.rejected for row in rows]


def halves(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return what belongs to chosen answers, and what to rejected ones, of what `sequences` came to."""
    chosen, rejected = torch.chunk(numbers, 2)
    return chosen, rejected
