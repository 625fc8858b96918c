"""Which examples are held out, and in which proportions the rest is seen."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorikeet_run.errors import RunError
from lorikeet_run.examples import Instance


@dataclass(frozen=True)
class Split:
    """Training sources without what is held out, and that."""

    train: list[list[Instance]]
    held_out: list[Instance]


def check_split(examples: Iterable[Instance]) -> None:
    """Find out whether something can be held out. Raises RunError (DataInvalid) without two different examples."""
    contents = (example.content for example in examples)
    first = next(contents, None)
    if all(content == first for content in contents):
        raise RunError(
            "DataInvalid", "evalFraction needs at least two different examples; give dataset.eval or more data"
        )


def split(sources: Sequence[Sequence[Instance]], fraction: float, seed: int) -> Split:
    """Hold out `fraction` of all examples, at least one, chosen by `seed`.

    Equal examples stay on one side together, in whatever source they stand: what is held out was never trained
    on. Raises RunError (DataInvalid) if there are not two different examples.
    """
    check_split(example for source in sources for example in source)
    contents = list(dict.fromkeys(example.content for source in sources for example in source))
    counts = dict.fromkeys(contents, 0)
    for source in sources:
        for example in source:
            counts[example.content] += 1
    random.Random(seed).shuffle(contents)  # noqa: S311 - reproducible, not secret
    wanted = max(1, round(fraction * sum(counts.values())))
    held_out = set()
    held = 0
    for content in contents[:-1]:
        if held >= wanted:
            break
        held_out.add(content)
        held += counts[content]
    return Split(
        [[example for example in source if example.content not in held_out] for source in sources],
        [example for source in sources for example in source if example.content in held_out],
    )


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
    for source, (size, count) in enumerate(zip(sizes, _shares(sum(sizes), weights), strict=True)):
        if size == 0:
            raise RunError(
                "DataInvalid", f"training source {source + 1} has no example left, so its weight cannot be met"
            )
        passes, rest = divmod(count, size)
        indices = [*list(range(size)) * passes, *generator.sample(range(size), rest)]
        chosen += [(source, index) for index in indices]
    return chosen


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts
