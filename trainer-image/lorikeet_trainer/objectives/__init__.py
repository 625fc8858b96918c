"""What is optimised, one file each: the trainer on rows of its kind, and how held-out rows are judged."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from lorikeet_api import objectives as api
from lorikeet_api.contract import RunContract
from lorikeet_trainer.device import Compute
from lorikeet_trainer.evaluate import Passes
from lorikeet_trainer.objectives.objective import Objective, Setting
from lorikeet_trainer.objectives.sft import Sft
from lorikeet_trainer.state import Layout

__all__ = ["Objective", "Setting", "Sft", "make_objective"]


def make_objective(
    contract: RunContract, layout: Layout, tokenizer: PreTrainedTokenizerBase, compute: Compute, passes: Passes
) -> Objective[Any]:
    """Return what a request asks for, with the models beside that it needs, which rows go through by `passes`.

    Raises RunError.
    """
    # Each loads its own of trl's trainers alone: all of them take a second.
    wanted = contract.objective
    if wanted.dpo is not None:
        from lorikeet_trainer.objectives.dpo import Dpo

        return Dpo(wanted.dpo)
    if wanted.kto is not None:
        from lorikeet_trainer.objectives.kto import Kto

        return Kto(wanted.kto, contract.dataset.max_length)
    if wanted.orpo is not None:
        from lorikeet_trainer.objectives.orpo import Orpo

        return Orpo(wanted.orpo)
    if wanted.reward is not None:
        from lorikeet_trainer.objectives.reward import Reward

        return Reward(wanted.reward)
    if wanted.rlhf is not None:
        from lorikeet_run.tokenizer import stop_ids
        from lorikeet_trainer.objectives.rlhf import Rlhf
        from lorikeet_trainer.rewards import make_rewards

        rewards = make_rewards(contract, layout, tokenizer, compute, passes)
        return Rlhf(wanted.rlhf, rewards, stop_ids(layout.model, tokenizer))
    packed_to = contract.dataset.max_length if contract.dataset.packing else None
    return Sft(wanted.sft or api.Sft(), packed_to)
