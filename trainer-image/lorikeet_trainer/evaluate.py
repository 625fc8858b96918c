"""Held-out rows through a model, by a loop of our own.

trl's `eval_loss` is a mean of batch means, so it moves with the batch size; here every sequence counts by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lorikeet_run.batches import batched
from lorikeet_run.tokens import IGNORED, Tokens
from lorikeet_trainer.stop import STOP


class Interrupted(Exception):
    """The run was asked to stop during an evaluation on the way."""


@dataclass(frozen=True)
class Passes:
    """How sequences are put through a model."""

    batch_size: int
    pad_id: int
    autocast: torch.dtype | None = None


def joined(prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
    """Return a prompt and an answer to it, which counts."""
    whole = np.asarray([*prompt, *answer], dtype=np.int32)
    return Tokens(whole, whole).answered_from(len(prompt))


def ranks() -> tuple[int, int]:
    """Return the number of this rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def pad(rows: Iterable[Tokens], pad_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return rows as one batch, padded on the right: `input_ids`, `attention_mask`, `labels` of (rows, longest)."""
    ids = [torch.from_numpy(row.input_ids).long() for row in rows]
    labels = [torch.from_numpy(row.labels).long() for row in rows]
    padded = nn.utils.rnn.pad_sequence
    return {
        "input_ids": padded(ids, batch_first=True, padding_value=pad_id).to(device),
        "attention_mask": padded([torch.ones_like(one) for one in ids], batch_first=True).to(device),
        "labels": padded(labels, batch_first=True, padding_value=IGNORED).to(device),
    }


def log_probabilities(model: nn.Module, rows: Sequence[Tokens], passes: Passes) -> Tensor:
    """Return the sum of the log-probabilities of each row's counted tokens: float64, (rows,).

    By trl's fused head, so that no whole logits are held. Raises Interrupted, see `each`.
    """

    def summed(batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(**batch, use_cache=False, fused_lm_head=True).log_probs
        return found.double().sum(1)

    return each(model, rows, passes, summed)


def each(
    model: nn.Module, rows: Sequence[Tokens], passes: Passes, read: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    """Return one number for each row, in order: float64, (rows,).

    Each rank takes every n-th row, and all ranks get all numbers. Where weights are sharded all take part in each pass,
    so a rank that is a row short takes the longest one too, for nothing. The model is left in the mode, training or
    not, in which it was. Raises Interrupted if a run of one rank is asked to stop meanwhile; of several, each must do
    its part.
    """
    device = next(model.parameters()).device
    rank, world = ranks()
    # Rows of like length together: less padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    short = -len(rows) % world
    mine = [*order, *[len(rows)] * short][rank::world]
    rows = [*rows, rows[order[-1]]]
    found = torch.zeros(len(rows), dtype=torch.float64, device=device)
    with evaluation_mode(model), torch.no_grad(), computing(model, passes.autocast):
        for some in batched(mine, passes.batch_size):
            if world == 1 and STOP.requested:
                raise Interrupted
            found[list(some)] = read(pad([rows[index] for index in some], passes.pad_id, device)).double()
    if world > 1:
        dist.all_reduce(found)
    return found[:-1]


def computing(model: nn.Module, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return what has a model compute in `dtype` where its weights lie in another type; None: in theirs."""
    # The cache would hold the weights of all of a sharded model's blocks until the end.
    cached = not isinstance(model, FSDPModule)
    device = next(model.parameters()).device
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=cached)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Turn dropout off for the block, and leave layers of 4 bits as they are.

    On a CPU with bfloat16 units bitsandbytes packs their weights for inference in the first forward pass outside
    training, for good, and no gradient flows back through them any more: an evaluation before training would
    quietly leave all adapters but the last layer's untrained.
    """
    was_training = model.training
    try:
        model.eval()
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.train()
        yield
    finally:
        model.train(was_training)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # training does it in its backward pass
