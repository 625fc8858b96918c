"""A training run of any objective: what all trainers have in common, and the run itself."""

import math
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import AutocastKwargs  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PrinterCallback, Trainer
from transformers.trainer import SCHEDULER_NAME

from lorikeet_run.errors import RunError, not_finite, preempted
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_trainer.checkpoints import Keeper
from lorikeet_trainer.device import Compute
from lorikeet_trainer.methods import Trainable
from lorikeet_trainer.methods.sharded import Sharded, local
from lorikeet_trainer.methods.trainable import cast_trained, trained_parameters
from lorikeet_trainer.selection import EndedEarly
from lorikeet_trainer.stop import STOP


class Guarded(Trainer):
    """What stands before trl's trainer of each objective.

    It stops at the first loss that is no number, which transformers logs as 0, and keeps checkpoints as methods do.
    """

    trainable: Trainable

    @property
    def autocast(self) -> torch.dtype | None:
        """Type that a forward pass computes in where weights lie in another; None: in theirs."""
        if self.args.bf16:
            return torch.bfloat16
        return torch.float16 if self.args.fp16 else None

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Make the optimiser, with the learning rates of the method."""
        is_new = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(model)
        if is_new:
            self.trainable.tune(optimizer)
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Make one micro step and return its loss. Raises RunError (LossNotFinite)."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise not_finite("the training loss", self.state.global_step + 1)
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if not is_finite(cast(nn.Module, self.model)):
            raise not_finite("a trained weight", self.state.global_step)
        # Past trl's own, which writes a model card to the output folder each time.
        Trainer._save_checkpoint(self, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the weights alone: the base's folder has the tokenizer, and nobody reads a pickle of the arguments."""
        if output_dir is not None and (self.args.should_save or self.trainable.is_sharded):
            self.trainable.save_checkpoint(Path(output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not isinstance(self.trainable, Sharded):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.trainable.save_optimizer(cast(Optimizer, self.optimizer), Path(output_dir))
        if self.args.should_save:
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not isinstance(self.trainable, Sharded):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self.trainable.load_optimizer(cast(Optimizer, self.optimizer), Path(checkpoint))
        cast(Any, self.lr_scheduler).load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.trainable.load_checkpoint(Path(resume_from_checkpoint))


@dataclass(frozen=True)
class TrainingOutcome:
    """What training came to."""

    loss: float
    """Mean over the steps."""
    steps: int
    planned: int
    """Steps that it was to make."""
    rows: int
    """What an epoch has: examples, or the sequences that they were packed into."""
    seconds: float
    tokens_per_second: float


def arguments(
    hyper: Hyperparameters, compute: Compute, *, optim: str, steps: int, scratch: Path, sharded: bool = False
) -> dict[str, Any]:
    """Return transformers' part of a trainer's configuration.

    Everything that decides the result is set here, nothing left to the libraries' defaults. `sharded` weights have
    gradients that are.
    """
    checkpointing = hyper.activation_checkpointing
    warms_up = hyper.scheduler == "constant" and hyper.warmup_ratio > 0
    return {
        "output_dir": str(scratch),
        "max_steps": steps,
        "per_device_train_batch_size": hyper.micro_batch_size,
        "gradient_accumulation_steps": hyper.accumulation,
        "learning_rate": hyper.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if warms_up else hyper.scheduler,
        "warmup_steps": math.ceil(hyper.warmup_ratio * steps),
        "weight_decay": hyper.weight_decay,
        "max_grad_norm": hyper.max_grad_norm,
        "optim": optim,
        "seed": hyper.seed,
        "data_seed": hyper.seed,
        # Frozen weights lie in this type already; for trained float32 weights it is what autocast computes in.
        "bf16": compute.dtype == torch.bfloat16,
        "fp16": compute.dtype == torch.float16,
        "use_cpu": not compute.on_gpu,
        # Its old name, gradient_checkpointing, follows this one.
        "activation_checkpointing": compute.on_gpu if checkpointing is None else checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "average_tokens_across_devices": True,
        "logging_steps": hyper.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": compute.on_gpu,
        "ddp_backend": ("nccl" if compute.on_gpu else "gloo") if compute.ranks > 1 else None,
        "ddp_find_unused_parameters": False if compute.ranks > 1 else None,
        # Else the gradients of a step's micro batches would be held whole until the last one.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": sharded}},
    }


def adopt(trainer: Guarded, trainable: Trainable) -> None:
    """Bind a new trainer to the method."""
    trainer.trainable = trainable
    trainer.remove_callback(PrinterCallback)
    # trl casts the adapters of a quantised base to bfloat16, also where the hardware computes in float32.
    cast_trained(trainable.model, trainable.dtype)
    if trainable.is_sharded:
        # Its cache would hold the weights of all blocks in 16 bits, which FSDP puts together one after the other.
        trainer.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)


def assert_sound(trainer: Guarded, trainable: Trainable, ranks: int) -> None:
    """Check what libraries have changed silently before. Raises RunError (InternalError)."""
    if trainer.accelerator.num_processes != ranks:
        raise RunError(
            "InternalError", f"{ranks} ranks were started, {trainer.accelerator.num_processes} train together"
        )
    if trainer.args.n_gpu > 1:
        raise RunError("InternalError", f"one process would train on {trainer.args.n_gpu} GPUs")
    trained = trained_parameters(trainable.model)
    types = {parameter.dtype for parameter in trained}
    if types != {trainable.dtype}:
        raise RunError("InternalError", f"parameters of {types} would be trained, not of {trainable.dtype}")
    whole = sum(not isinstance(parameter, DTensor) for parameter in trained)
    if trainable.is_sharded and whole:
        raise RunError("InternalError", f"{whole} of {len(trained)} weights would be held whole by every rank")
    if (found := sum(parameter.numel() for parameter in trained)) != trainable.trained:
        raise RunError("InternalError", f"{found} parameters would be trained, not {trainable.trained}")


def is_finite(model: nn.Module) -> bool:
    """Return whether every trained weight is a number; where they are sharded, of all ranks' parts."""
    trained = trained_parameters(model)
    bad = sum(not torch.isfinite(local(parameter)).all() for parameter in trained)
    everywhere = torch.tensor(bad, device=trained[0].device)
    if dist.is_initialized():
        dist.all_reduce(everywhere)
    return not everywhere


def fit(trainer: Guarded, trainable: Trainable, keeper: Keeper, ranks: int) -> TrainingOutcome:
    """Train, from the keeper's checkpoint on if it has one.

    Raises RunError: LossNotFinite if it diverges, Preempted if it was asked to stop on the way.
    """
    assert_sound(trainer, trainable, ranks)
    with STOP.deferred():
        try:
            loss = float(trainer.train(resume_from_checkpoint=keeper.folder).training_loss)
        except EndedEarly:
            loss = keeper.mean_loss
    seconds = keeper.seconds
    assert_sound(trainer, trainable, ranks)
    step = trainer.state.global_step
    # The last step's update is seen by no loss.
    if not is_finite(trainable.model):
        raise not_finite("a trained weight", step)
    if step < trainer.state.max_steps and not keeper.report.has_ended_early:
        raise preempted(None)
    # Trained to its end it is published, whoever has asked it to stop in the last step.
    STOP.requested = False
    tokens = float(trainer.state.num_input_tokens_seen)
    rows = len(cast(Sized, trainer.train_dataset))
    return TrainingOutcome(loss, step, trainer.state.max_steps, rows, seconds, tokens / seconds)
