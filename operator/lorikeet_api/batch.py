"""How an effective batch is shared out: over the GPUs, and on each over forward passes."""

from typing import Final

from lorikeet_api.objectives import Objective
from lorikeet_api.training import Precision

USUAL: Final = 4
"""The most examples of a forward pass that nobody asked for, where it is not tried how many fit."""


def micro_batch(batch_size: int, ranks: int, asked: int | None, at_most: int = USUAL) -> int:
    """Return the examples of one forward pass on one of `ranks` GPUs; the rest of its share is accumulated.

    What was asked for, else the largest divisor of the share up to `at_most`. Raises ValueError if the batch cannot be
    shared out evenly.
    """
    share, rest = divmod(batch_size, ranks)
    if rest or share % (asked or 1):
        by = f" in steps of microBatchSize {asked}" if asked is not None else ""
        raise ValueError(
            f"batchSize {batch_size} cannot be shared out evenly over {ranks} GPUs{by}: choose a multiple of"
            f" {ranks * (asked or 1)}"
        )
    return asked or largest_divisor(share, at_most)


def largest_divisor(share: int, at_most: int) -> int:
    """Return the largest divisor of a share of the batch up to `at_most`, which is 1 or more."""
    return max(size for size in range(1, min(share, at_most) + 1) if share % size == 0)


def is_tried(objective: Objective, precision: Precision | None, gpus: int) -> bool:
    """Whether a run tries, before it trains, how many examples of a forward pass fit, where nobody asked.

    Not with kto, which compares within a micro batch, and orpo, which takes means over one: their results would depend
    on the GPU. Nor with rlhf, where memory depends on answers that nobody has written yet; nor in fp16, whose first
    steps are left out until the losses are scaled, and would show less than the others take; nor on a CPU, which is as
    fast with few.
    """
    return gpus > 0 and precision != "fp16" and objective.name in ("sft", "dpo", "reward")
