"""Which examples are held out, and in which proportions the rest is seen."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lorikeet_run.errors import RunError
from lorikeet_run.examples import Instance, Instances


@dataclass(frozen=True)
class Side:
    """The rows of some sources that are held out, or those that are not."""

    sources: Sequence[Instances]
    held_out: frozenset[bytes]
    """The contents that are, by their digests."""
    is_held_out: bool
    rows: int
    """How many there are."""

    def __iter__(self) -> Iterator[Instance]:
        for source in self.sources:
            for example in source:
                if (_digest(example) in self.held_out) == self.is_held_out:
                    yield example

    def __len__(self) -> int:
        return self.rows


@dataclass(frozen=True)
class Split:
    """Training sources without what is held out, and that."""

    train: list[Side]
    held_out: Side


def check_split(examples: Iterable[Instance]) -> None:
    """Find out whether something can be held out. Raises RunError (DataInvalid) without two different examples."""
    contents = (example.content for example in examples)
    first = next(contents, None)
    if all(content == first for content in contents):
        raise RunError(
            "DataInvalid", "evalFraction needs at least two different examples; give dataset.eval or more data"
        )


def split(sources: Sequence[Instances], fraction: float, seed: int) -> Split:
    """Hold out `fraction` of all examples, at least one, chosen by `seed`.

    Equal examples stay on one side together, in whatever source they stand: what is held out was never trained
    on. Raises RunError (DataInvalid) if there are not two different examples.
    """
    check_split(example for source in sources for example in source)
    counts = [Counter(map(_digest, source)) for source in sources]
    total = Counter[bytes]()
    for one in counts:
        total.update(one)
    contents = list(total)
    random.Random(seed).shuffle(contents)  # noqa: S311 - reproducible, not secret
    wanted = max(1, round(fraction * total.total()))
    chosen = set()
    held = 0
    for content in contents[:-1]:
        if held >= wanted:
            break
        chosen.add(content)
        held += total[content]
    held_out = frozenset(chosen)

    def side(of: Sequence[int], *, is_held_out: bool) -> Side:
        rows = sum(
            count for number in of for content, count in counts[number].items() if (content in held_out) == is_held_out
        )
        return Side([sources[number] for number in of], held_out, is_held_out, rows)

    numbers = range(len(sources))
    return Split([side([number], is_held_out=False) for number in numbers], side(numbers, is_held_out=True))


def _digest(example: Instance) -> bytes:
    """Return what stands for an example's content: of a million of them the texts would take as much as the data."""
    return hashlib.blake2b(repr(example.content).encode(), digest_size=16).digest()


def mix(sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> list[tuple[int, int]]:
    """Return an epoch's examples as (source, index in the source), in no order that matters.

    Without weights: every example of every source once. With weights an epoch has as many examples as the
    sources have together, shared out by weight (largest remainders, so the counts add up); a source with a larger
    share than its size is repeated, whole passes first, and what is left of a pass is drawn by `seed`. An epoch
    repeats the same choice: the trainer shuffles it anew each time.
    """
    if weights is None:
        return [(source, index) for source, size in enumerate(sizes) for index in range(size)]
    generator = random.Random(seed)  # noqa: S311 - reproducible, not secret
    chosen = []
    check_weights(sizes, weights)
    for source, (size, count) in enumerate(zip(sizes, _shares(sum(sizes), weights), strict=True)):
        passes, rest = divmod(count, size)
        indices = [*list(range(size)) * passes, *generator.sample(range(size), rest)]
        chosen += [(source, index) for index in indices]
    return chosen


def check_weights(sizes: Sequence[int], weights: Sequence[float] | None) -> None:
    """Find out whether each source can have its share. Raises RunError (DataInvalid) where none of its rows is left."""
    if weights is not None and 0 in sizes:
        raise RunError(
            "DataInvalid", f"training source {sizes.index(0) + 1} has no example left, so its weight cannot be met"
        )


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts
