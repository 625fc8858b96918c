"""In which order examples are seen: each epoch's own, whoever goes on in the middle of one."""

from typing import Any

import pytest
import torch
from accelerate.data_loader import (  # type: ignore[import-untyped]
    BatchSamplerShard,
    SeedableRandomSampler,
    skip_first_batches,
)
from torch.utils.data import BatchSampler, DataLoader

from lorikeet_trainer.checkpoints import draw_epoch

pytestmark = pytest.mark.trainer

ROWS = list(range(16))


def loader(rank: int) -> Any:
    """What the first or the second of two ranks reads, two rows at a time."""
    sampler = SeedableRandomSampler(ROWS, generator=torch.Generator(), data_seed=1)
    shard = BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), num_processes=2, process_index=rank)
    return DataLoader(ROWS, batch_sampler=shard)  # type: ignore[arg-type]


def seen(some: Any, epoch: int) -> list[list[int]]:
    draw_epoch(some, epoch)
    return [batch.tolist() for batch in some]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_goes_on_in_a_later_epoch_sees_its_rest(rank: int) -> None:
    first, second = seen(loader(rank), 0), seen(loader(rank), 1)
    assert first != second
    assert seen(skip_first_batches(loader(rank), 2), 1) == second[2:]


def test_ranks_share_an_epoch_out() -> None:
    both = [row for rank in (0, 1) for batch in seen(loader(rank), 1) for row in batch]
    assert sorted(both) == ROWS


def test_what_draws_no_order_is_left_alone() -> None:
    assert seen(DataLoader(ROWS, batch_size=16), 3) == [ROWS]  # type: ignore[arg-type]
