"""Cutting sequences into batches."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `items` in order, `size` at a time, the last batch shorter (as itertools has it from Python 3.12 on)."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
