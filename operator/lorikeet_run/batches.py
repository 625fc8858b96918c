"""Cutting sequences into batches."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `items` in order, `size` at a time, the last batch shorter (as itertools has it from Python 3.12 on)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def micro_batch(batch_size: int, ranks: int, asked: int | None) -> int | None:
    """Return the examples of one forward pass on one rank, or None if the batch cannot be shared out.

    What was asked for, else the largest divisor of a rank's share of the batch up to 4.
    """
    share, rest = divmod(batch_size, ranks)
    if rest or (asked is not None and share % asked):
        return None
    return asked or max(size for size in range(1, 5) if share % size == 0)
