"""How an effective batch is shared out: over the GPUs, and on each over forward passes."""

from typing import Final

LARGEST_CHOSEN: Final = 4
"""The most examples of a forward pass that nobody asked for."""


def micro_batch(batch_size: int, ranks: int, asked: int | None) -> int:
    """Return the examples of one forward pass on one of `ranks` GPUs; the rest of its share is accumulated.

    What was asked for, else the largest divisor of the share up to LARGEST_CHOSEN. Raises ValueError if the batch
    cannot be shared out evenly.
    """
    share, rest = divmod(batch_size, ranks)
    if rest or share % (asked or 1):
        by = f" in steps of microBatchSize {asked}" if asked is not None else ""
        raise ValueError(
            f"batchSize {batch_size} cannot be shared out evenly over {ranks} GPUs{by}: choose a multiple of"
            f" {ranks * (asked or 1)}"
        )
    return asked or max(size for size in range(1, LARGEST_CHOSEN + 1) if share % size == 0)
