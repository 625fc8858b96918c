"""What a run's data looked like, for its report."""

from collections.abc import Sequence
from typing import Final

from lorikeet_api.contract import RunContract, SourceDigest, data_uses, read_as
from lorikeet_run.data import detect
from lorikeet_run.files import read_rows
from lorikeet_run.rendered import Rendered
from lorikeet_run.report import DataProfile, LengthBin, SourceProfile
from lorikeet_trainer.state import Layout

_BINS: Final = 16
"""Bars of the histogram, about."""


def profile(
    contract: RunContract,
    layout: Layout,
    digests: Sequence[SourceDigest],
    rendered: Sequence[Rendered],
    held: Rendered,
    test: Rendered,
    general: Rendered,
) -> DataProfile:
    """Return the profile of what was rendered: training sources in the contract's order, held-out rows, the sets."""
    return DataProfile(
        sources=[
            SourceProfile(
                uri=digest.uri,
                rows=digest.rows or 0,
                format=_format(read_as(contract, use), layout, index, digest),
                use=use,
            )
            for index, (use, digest) in enumerate(zip(data_uses(contract), digests, strict=True))
        ],
        train_examples=sum(len(one.rows) for one in rendered),
        held_out_examples=len(held.rows),
        test_examples=len(test.rows),
        general_examples=len(general.rows),
        dropped=sum(one.dropped for one in [*rendered, held, test, general]),
        trained_tokens=sum(int(one.rows.trained.sum()) for one in rendered),
        lengths=bins([length for one in rendered for length in one.rows.lengths.tolist()]),
    )


def _format(contract: RunContract, layout: Layout, index: int, digest: SourceDigest) -> str:
    dataset = contract.dataset
    if dataset.format != "auto":
        return dataset.format
    files = ((layout.source(index) / file.path, file.path) for file in digest.files)
    return next(
        detect(placed, dataset, contract.objective.name) for path, name in files for placed in read_rows(path, name)
    )


def bins(lengths: Sequence[int]) -> list[LengthBin]:
    """Return how many of `lengths` fall into each of a few equal bins, whose width is 1, 2 or 5 times a power of 10."""
    if not lengths:
        return []
    span = max(lengths) - min(lengths) + 1
    width = next(step * 10**power for power in range(10) for step in (1, 2, 5) if step * 10**power * _BINS >= span)
    first = min(lengths) // width * width
    counts = [0] * ((max(lengths) - first) // width + 1)
    for length in lengths:
        counts[(length - first) // width] += 1
    return [
        LengthBin(first=first + place * width, last=first + (place + 1) * width - 1, examples=count)
        for place, count in enumerate(counts)
    ]
