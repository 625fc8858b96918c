"""What is optimised, one file each: the trainer on rows of its kind, and how held-out rows are judged."""

from typing import Any

from lorikeet_api import objectives as api
from lorikeet_api.training import Dataset
from lorikeet_trainer.objectives.dpo import Dpo
from lorikeet_trainer.objectives.kto import Kto
from lorikeet_trainer.objectives.objective import Objective, Setting
from lorikeet_trainer.objectives.orpo import Orpo
from lorikeet_trainer.objectives.reward import Reward
from lorikeet_trainer.objectives.sft import Sft

__all__ = ["Objective", "Setting", "make_objective"]


def make_objective(wanted: api.Objective, dataset: Dataset) -> Objective[Any]:
    """Return what a request asks for."""
    if wanted.dpo is not None:
        return Dpo(wanted.dpo)
    if wanted.kto is not None:
        return Kto(wanted.kto, dataset.max_length)
    if wanted.orpo is not None:
        return Orpo(wanted.orpo)
    if wanted.reward is not None:
        return Reward(wanted.reward)
    return Sft(wanted.sft or api.Sft(), dataset.max_length if dataset.packing else None)
