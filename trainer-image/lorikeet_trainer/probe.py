"""The stage between fetching and training, one process a rank: what real steps take of memory.

They are made as training makes them, on the longest example that it has, and nothing of them is kept: the process ends
with them. `fitting` makes a micro batch of what they took.
"""

from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar, cast

import datasets  # type: ignore[import-untyped]
import numpy as np
import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorikeet_api.contract import RunContract
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.rows import Epoch, Rows
from lorikeet_run.tokenizer import load_tokenizer
from lorikeet_run.tokens import TokenRow, Tokens
from lorikeet_trainer import device, loop
from lorikeet_trainer.examples import render
from lorikeet_trainer.objectives import make_objective
from lorikeet_trainer.session import Session, load, passes_of, setting
from lorikeet_trainer.state import Layout, Measured, Prepared

TRIED: Final = (1, 2)
"""Micro batches, one after the other."""
STEPS: Final = 2
"""Optimiser steps with each: only in the second one the optimiser's state lies there while gradients are computed.
What an optimiser takes beyond its state is the same for each micro batch, and would hide what that takes: it is not
measured."""
ACCUMULATED: Final = 2
"""Micro batches of a step: only in the second one gradients lie there while activations are held."""

R = TypeVar("R", bound=TokenRow)


class Memory(Protocol):
    """The memory that a rank's steps take."""

    @property
    def limit(self) -> int:
        """Bytes that there are."""

    def begin(self) -> None:
        """Begin to look for the peak."""

    def peak(self) -> int:
        """Return the most bytes that were taken since."""


class GpuMemory:
    """That of a rank's GPU."""

    def __init__(self, gpu: torch.device) -> None:
        self._gpu = gpu

    @property
    def limit(self) -> int:
        """Bytes that it has."""
        return int(torch.cuda.mem_get_info(self._gpu)[1])

    def begin(self) -> None:
        """Give back what torch keeps for later, and begin to look for the peak."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._gpu)

    def peak(self) -> int:
        """Return the most that torch has kept, and what others hold: the context, NCCL, another process."""
        free, total = torch.cuda.mem_get_info(self._gpu)
        others = total - free - torch.cuda.memory_reserved(self._gpu)
        return int(torch.cuda.max_memory_reserved(self._gpu) + max(0, others))


class _Meter(TrainerCallback):
    """Leaves the peak of each micro batch in a file as soon as it is known: a larger one may end the process."""

    def __init__(self, memory: Memory, layout: Layout, rank: int) -> None:
        self._memory, self._file = memory, layout.measured(rank)
        self._peaks: dict[int, int] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin."""
        self._memory.begin()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Measure what was taken up to the last gradient of each micro batch."""
        made = state.global_step + 1
        if made % STEPS == 0:
            self._peaks[TRIED[made // STEPS - 1]] = self._memory.peak()
            Measured(limit=self._memory.limit, peaks=self._peaks).write(self._file)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin again after each update."""
        self._memory.begin()


def probe(contract: RunContract, layout: Layout, memory: Memory | None = None) -> None:
    """Measure what training takes of `memory`, by default the GPU's. Raises RunError, and torch's OutOfMemoryError."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    compute = device.choose(contract)
    layout.measured(compute.rank).unlink(missing_ok=True)
    layout.scratch = layout.probe
    prepared = Prepared.read(layout.prepared)
    hyper = replace(
        Hyperparameters.of(contract), micro_batch_size=1, accumulation=ACCUMULATED, epochs=1.0, max_steps=None
    )
    session = Session(contract, layout, prepared, hyper, compute)
    tokenizer = load_tokenizer(layout.model)
    epoch = render(session, tokenizer).train
    trainable = load(session)
    objective = make_objective(contract, layout, tokenizer, compute, passes_of(session, tokenizer))
    count = len(TRIED) * STEPS * ACCUMULATED * compute.ranks
    rows = repeated(longest(epoch, contract.dataset.max_length if contract.dataset.packing else 0), count)
    trainer = objective.trainer(setting(session, trainable, tokenizer), rows)
    loop.adopt(trainer, trainable)
    # One trainer makes all steps: what it has made of the model and the optimiser cannot be taken back.
    sizes = (size for size in TRIED for _ in range(STEPS * ACCUMULATED))
    collate: Any = trainer.data_collator
    trainer.data_collator = lambda row: collate(row * next(sizes))
    trainer.add_callback(_Meter(memory or GpuMemory(compute.device), layout, compute.rank))
    trainer.train()


def longest(epoch: Epoch[R], packed_to: int = 0) -> R:
    """Return the longest row of an epoch; of one that is packed, a sequence as long as those may become."""
    lengths = np.concatenate([rows.lengths for rows in epoch.sources])[epoch.places]
    row = epoch[int(lengths.argmax())]
    if not packed_to:
        return row
    parts = [Tokens(np.resize(part.input_ids, packed_to), np.resize(part.labels, packed_to)) for part in row.parts]
    return cast(R, row.of(parts))


def repeated(row: R, count: int) -> Epoch[R]:
    """Return an epoch of one row, so often."""
    rows: Rows[R] = Rows()
    for _ in range(count):
        rows.append(row)
    return Epoch.of([rows], [(0, number) for number in range(count)])
