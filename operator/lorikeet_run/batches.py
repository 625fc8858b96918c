"""Cutting what is gone through into batches."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, TypeVar, cast

T = TypeVar("T")

_END: Final = object()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield `items` in order, `size` at a time, the last batch shorter (as itertools has it from Python 3.12 on)."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items` in order; a thread makes the next one meanwhile. What it raises is raised in its place."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, items, _END)
            yield cast(T, item)
