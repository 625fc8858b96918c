"""The loss on held-out examples, by a loop of our own.

trl's `eval_loss` is a mean of batch means, so it moves with the batch size; this one is the sum of all trained
tokens' negative log-likelihoods over their number.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from bitsandbytes.nn.modules import Linear4bit
from torch import Tensor, nn

from lorikeet_run.batches import batched
from lorikeet_run.render import IGNORED, Tokens
from lorikeet_trainer.stop import STOP


class Interrupted(Exception):
    """The run was asked to stop during an evaluation on the way."""


@dataclass(frozen=True)
class Evaluation:
    """The loss on held-out examples."""

    loss: float
    """Mean negative log-likelihood of a trained token, in nats."""
    tokens: int
    """Trained tokens."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is too large a number."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


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


def evaluate(
    model: nn.Module, rows: Sequence[Tokens], batch_size: int, pad_id: int, autocast: torch.dtype | None = None
) -> Evaluation:
    """Return the loss of `model` (with trl's fused head, so that no whole logits are held) on `rows`.

    Each rank takes every n-th row, and the sums are added up over the ranks. The model is left in the mode,
    training or not, in which it was. Raises Interrupted if a run of one rank is asked to stop meanwhile; of several,
    each must do its part of the sums.
    """
    device = next(model.parameters()).device
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # Rows of like length together: less padding.
    mine = sorted(rows, key=lambda row: len(row.input_ids))[rank::world]
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    with (
        evaluation_mode(model),
        torch.inference_mode(),
        torch.autocast(device.type, autocast, enabled=autocast is not None),
    ):
        for some in batched(mine, batch_size):
            if world == 1 and STOP.requested:
                raise Interrupted
            output = model(**pad(some, pad_id, device), use_cache=False, fused_lm_head=True)
            sums[0] -= output.log_probs.double().sum()
            sums[1] += output.label_mask.sum()
    if world > 1:
        dist.all_reduce(sums)
    return Evaluation(float(sums[0] / sums[1]), int(sums[1]))


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
