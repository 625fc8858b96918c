"""The run's hyperparameters, every one with a value."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from lorikeet_api.batch import USUAL, is_tried, micro_batch
from lorikeet_api.contract import RunContract
from lorikeet_api.defaults import DEFAULTS
from lorikeet_api.objectives import unmeasured, unshared
from lorikeet_api.training import Attention, Checkpoints, EarlyStopping, Kernels, Optimizer, Precision, Scheduler
from lorikeet_run.errors import RunError


@dataclass(frozen=True)
class Hyperparameters:
    """`Training` without absent fields, and the batch shared out over ranks and accumulation steps."""

    epochs: float
    max_steps: int | None
    learning_rate: float
    micro_batch_size: int
    tries_micro_batch: bool
    """Whether it is only the usual one, and the run is to find its own by trying."""
    accumulation: int
    ranks: int
    warmup_ratio: float
    weight_decay: float
    scheduler: Scheduler
    optimizer: Optimizer | None
    """None: what suits method and hardware."""
    precision: Precision | None
    """None: what the hardware has."""
    attention: Attention | None
    """None: what the model has."""
    kernels: Kernels | None
    """None: what suits method, model and hardware."""
    max_grad_norm: float
    seed: int
    activation_checkpointing: bool | None
    """None: where the run has a GPU."""
    logging_steps: int
    eval_steps: int | None
    """None: once an epoch."""
    early_stopping: EarlyStopping | None
    """None: all steps are made."""
    publish: Literal["last", "best"]
    checkpoints: Checkpoints
    stall_timeout_seconds: int | None
    """None: by what steps take."""
    generations: int = 1
    """Answers to each example that rlhf has written; the batch counts them."""

    @classmethod
    def of(cls, contract: RunContract, fitting: int | None = None) -> Self:
        """Return the contract's; what it leaves open comes from the table by method and objective.

        `fitting` is the largest micro batch that is known to fit, for a run whose contract leaves it open. Raises
        RunError (InvalidContract) if the batch cannot be shared out, or what it fails on not be measured.
        """
        usual = DEFAULTS[contract.method.name, contract.objective.name]
        values: dict[str, Any] = dict(usual) | {name: value for name, value in contract.training if value is not None}
        del values["signs"]  # nothing that a step is made by
        values["publish"] = values["publish"] or ("last" if values["early_stopping"] is None else "best")
        ranks, batch_size, asked = contract.ranks, values.pop("batch_size"), values.pop("micro_batch_size")
        try:
            micro = micro_batch(batch_size, ranks, asked, USUAL if fitting is None else fitting)
        except ValueError as error:
            raise RunError("InvalidContract", str(error)) from error
        if contract.objective.kto is not None and micro == 1:
            raise RunError(
                "InvalidContract",
                f"objective kto compares each answer with another of its micro batch, and batchSize {batch_size} over"
                f" {ranks} GPUs leaves micro batches of one: set microBatchSize to 2 or more, and batchSize to a"
                " multiple of it",
            )
        if (why := unshared(contract.objective, batch_size)) is not None:
            raise RunError("InvalidContract", f"{why} (it is {batch_size})")
        if (why := unmeasured(contract.dataset, contract.training)) is not None:
            raise RunError("InvalidContract", why)
        rlhf = contract.objective.rlhf
        return cls(
            **values,
            micro_batch_size=micro,
            tries_micro_batch=asked is None
            and fitting is None
            and batch_size > ranks
            and is_tried(contract.objective, contract.training.precision, contract.gpus),
            accumulation=batch_size // (micro * ranks),
            ranks=ranks,
            generations=rlhf.num_generations if rlhf is not None else 1,
        )

    @property
    def keeps_best(self) -> bool:
        """Whether the weights with the lowest loss on the held-out examples are of use at the end."""
        return self.publish == "best" or self.checkpoints.after_success == "keepBest"

    def steps(self, rows: int) -> int:
        """Return the optimiser steps of a run on an epoch of `rows`: those of its epochs, at most `max_steps`.

        Of rlhf an epoch has whole steps alone. Raises RunError (DataInvalid) if the rows do not suffice for one.
        """
        micro_steps = math.ceil(rows / (self.micro_batch_size * self.ranks))
        an_epoch = math.ceil(micro_steps / self.accumulation)
        if self.generations > 1:
            prompts = self.micro_batch_size * self.ranks * self.accumulation // self.generations
            an_epoch = rows // prompts
            if not an_epoch:
                raise RunError(
                    "DataInvalid",
                    f"there are {rows} prompts to train on, and a step takes {prompts} (batchSize / numGenerations)"
                    ": lower training.batchSize, or give more of them",
                )
        whole = math.ceil(self.epochs * an_epoch)
        return whole if self.max_steps is None else min(whole, self.max_steps)
