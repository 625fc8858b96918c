"""How a batch is shared out over GPUs and forward passes."""

import pytest

from lorikeet_api.batch import micro_batch


@pytest.mark.parametrize(
    ("batch", "ranks", "asked", "expected"),
    [(16, 1, None, 4), (6, 1, None, 3), (7, 1, None, 1), (1, 1, None, 1), (16, 8, None, 2), (16, 1, 8, 8)],
)
def test_the_micro_batch_divides_a_ranks_share(batch: int, ranks: int, asked: int | None, expected: int) -> None:
    assert micro_batch(batch, ranks, asked) == expected


@pytest.mark.parametrize(
    ("ranks", "at_most", "asked", "expected"), [(1, 8, None, 8), (4, 8, None, 4), (1, 7, None, 4), (1, 8, 2, 2)]
)
def test_what_is_known_to_fit_bounds_it_whatever_the_share_has_become(
    ranks: int, at_most: int, asked: int | None, expected: int
) -> None:
    assert micro_batch(16, ranks, asked, at_most) == expected


@pytest.mark.parametrize(
    ("batch", "ranks", "asked", "multiple"), [(16, 3, None, 3), (16, 2, 16, 32), (4, 8, None, 8), (8, 1, 3, 3)]
)
def test_a_batch_that_cannot_be_shared_out_is_told_with_one_that_can(
    batch: int, ranks: int, asked: int | None, multiple: int
) -> None:
    with pytest.raises(ValueError, match=rf"over {ranks} GPUs.*: choose a multiple of {multiple}$"):
        micro_batch(batch, ranks, asked)
