"""The run's hyperparameters, every one with a value."""

import math
from dataclasses import dataclass
from typing import Self

from lorikeet_api.contract import RunContract
from lorikeet_api.defaults import DEFAULTS
from lorikeet_api.signs import Signs
from lorikeet_api.training import Checkpoints, Scheduler
from lorikeet_run.batches import micro_batch
from lorikeet_run.errors import RunError


@dataclass(frozen=True)
class Hyperparameters:
    """`Training` without absent fields, and the batch shared out over ranks and accumulation steps."""

    epochs: float
    max_steps: int | None
    learning_rate: float
    micro_batch_size: int
    accumulation: int
    ranks: int
    warmup_ratio: float
    weight_decay: float
    scheduler: Scheduler
    max_grad_norm: float
    seed: int
    activation_checkpointing: bool | None
    """None: where the run has a GPU."""
    logging_steps: int
    eval_steps: int | None
    """None: once an epoch."""
    checkpoints: Checkpoints
    signs: Signs | None
    stall_timeout_seconds: int | None
    """None: by what steps take."""

    @classmethod
    def of(cls, contract: RunContract) -> Self:
        """Return the contract's; what it leaves open comes from the table by method and objective.

        Raises RunError (InvalidContract) if the batch cannot be shared out.
        """
        usual = DEFAULTS[contract.method.name, contract.objective.name]
        values = dict(usual) | {name: value for name, value in contract.training if value is not None}
        ranks, batch_size = max(1, contract.gpus), values.pop("batch_size")
        asked = values.pop("micro_batch_size")
        micro = micro_batch(batch_size, ranks, asked)
        if micro is None:
            by = f" in steps of microBatchSize {asked}" if asked is not None else ""
            raise RunError(
                "InvalidContract",
                f"batchSize {batch_size} cannot be shared out evenly over {ranks} GPUs{by}: choose a multiple of"
                f" {ranks * (asked or 1)}",
            )
        if contract.objective.kto is not None and micro == 1:
            raise RunError(
                "InvalidContract",
                f"objective kto compares each answer with another of its micro batch, and batchSize {batch_size} over"
                f" {ranks} GPUs leaves micro batches of one: set microBatchSize to 2 or more, and batchSize to a"
                " multiple of it",
            )
        return cls(**values, micro_batch_size=micro, accumulation=batch_size // (micro * ranks), ranks=ranks)

    def steps(self, examples: int) -> int:
        """Return the optimiser steps of a run on `examples`: those of its epochs, at most `max_steps`."""
        micro_steps = math.ceil(examples / (self.micro_batch_size * self.ranks))
        whole = math.ceil(self.epochs * math.ceil(micro_steps / self.accumulation))
        return whole if self.max_steps is None else min(whole, self.max_steps)
