"""When a rank saves a checkpoint, and what of the run's course goes into it; `upload` brings it to the store.

Written whole or not at all: transformers' files first, ours next, then the folder gets its final name.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import nested_gather

from lorikeet_run import log
from lorikeet_trainer.report import Report
from lorikeet_trainer.state import COURSE, Course, Layout, Standing
from lorikeet_trainer.stop import STOP
from lorikeet_trainer.upload import folder_size


@dataclass
class Keeper(TrainerCallback):
    """Saves every `every_steps` steps and when the run is to stop, and takes the course up again."""

    trainer: Trainer
    report: Report
    layout: Layout
    every_steps: int
    base: Standing
    """How the model did before training."""
    resumed: Course | None
    """The course up to the checkpoint that the run goes on from; None if it begins at the beginning."""
    newest_bytes: int | None = None
    """Size of the newest checkpoint; None before there is one."""
    _began: float = 0.0
    _to_remove: bool = False
    """Whether the checkpoint that was gone on from still lies on this rank's disk."""

    @property
    def folder(self) -> str | None:
        """The checkpoint to go on from, as transformers wants it named."""
        return str(self.layout.resume) if self.resumed is not None else None

    @property
    def seconds(self) -> float:
        """Seconds of training, in all attempts that led here, without the evaluations on the way."""
        before = self.resumed.seconds if self.resumed is not None else 0.0
        return before + monotonic() - self._began - self.report.eval_seconds

    @property
    def mean_loss(self) -> float:
        """Training loss of an attempt that makes no step: what those before it have left."""
        assert self.resumed is not None  # noqa: S101 - who begins makes steps
        return (self.resumed.loss_sum + self.resumed.loss_since) / self.trainer.state.global_step

    @property
    def checkpoint_seconds(self) -> float:
        """Those of `seconds` in which checkpoints were saved."""
        return self.report.checkpoint_seconds + (self.resumed.checkpoint_seconds if self.resumed is not None else 0.0)

    @property
    def eval_seconds(self) -> float:
        """Seconds of the evaluations on the way, in all attempts."""
        return self.report.eval_seconds + (self.resumed.eval_seconds if self.resumed is not None else 0.0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Take the losses up where the checkpoint left them: transformers would begin them at nothing."""
        self._began = monotonic()
        if self.resumed is not None:
            self.newest_bytes = folder_size(self.layout.resume)
        self.report.selection.take_up(self.resumed, self.layout.resume)
        if self.resumed is None:
            return
        self._to_remove = bool(args.should_save)
        self.report.curve[:] = self.resumed.curve
        self.report.pace[:] = self.resumed.pace
        trainer = self.trainer
        trainer._tr_loss.fill_(self.resumed.loss_since)
        trainer._total_loss_scalar = self.resumed.loss_sum
        trainer._globalstep_last_logged = self.resumed.logged_step
        trainer._initial_global_step = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Have the order of this epoch drawn."""
        draw_epoch(kwargs["train_dataloader"], int(state.epoch or 0))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask for a checkpoint where one is due; the last step needs none, publishing follows it."""
        if self._to_remove:
            # Read to the end by the first step; it may be as large as the model.
            self._to_remove = False
            shutil.rmtree(self.layout.resume, ignore_errors=True)
        stop = self._asked_to_stop()
        if state.global_step >= state.max_steps:
            return
        if stop:
            control.should_training_stop = True
        if stop or state.global_step % self.every_steps == 0:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Add our part to what transformers has saved, and hand it on under its final name."""
        self.report.count_checkpoint()  # transformers' part of it
        best = self.report.selection.best
        course = Course(
            base=self.base,
            curve=self.report.curve,
            pace=self.report.pace,
            seconds=self.seconds,
            checkpoint_seconds=self.checkpoint_seconds,
            eval_seconds=self.eval_seconds,
            loss_sum=self.trainer._total_loss_scalar,
            loss_since=self._loss_since_logged(),
            logged_step=self.trainer._globalstep_last_logged,
            micro_batch_size=args.per_device_train_batch_size,
            best_step=best.step if best is not None else None,
        )
        if dist.is_initialized():
            dist.barrier()  # every rank has written its random state
        if not args.should_save:
            return
        start = monotonic()
        made = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        course.write(made / COURSE)
        self.report.selection.keep(made)
        self.newest_bytes = folder_size(made)
        self.layout.checkpoints.mkdir(parents=True, exist_ok=True)
        superseded = list(self.layout.checkpoints.iterdir())
        made.rename(self.layout.checkpoints / str(state.global_step))
        for older in superseded:
            _remove(older)
        self.report.count_checkpoint()
        log.event("checkpoint", step=state.global_step, seconds=round(monotonic() - start, 3))

    def _loss_since_logged(self) -> float:
        """Return the sum of the steps' losses since the last logged one, mean over the ranks."""
        trainer = self.trainer
        gathered: torch.Tensor = nested_gather(trainer._tr_loss, trainer.args.parallel_mode)  # type: ignore[no-untyped-call]
        return float(gathered.mean())

    def _asked_to_stop(self) -> bool:
        """Whether any rank was asked to: all of them must end after the same step."""
        if not dist.is_initialized():
            return STOP.requested
        asked = torch.tensor(float(STOP.requested), device=self.trainer.args.device)
        dist.all_reduce(asked)
        return bool(asked)


def _remove(folder: Path) -> None:
    """Remove a checkpoint that nobody has begun to upload; under another name first, so that nobody begins now."""
    doomed = folder.with_name(f".{folder.name}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return  # the uploader was faster
    shutil.rmtree(doomed, ignore_errors=True)


def draw_epoch(loader: object, epoch: int) -> None:
    """Have a loader's sampler draw the order of an epoch, counted from 0.

    accelerate does so, but does not reach the sampler behind what ranks share out and a resumed run skips: it would
    draw the first epoch's order again.
    """
    inner: object | None = loader
    while inner is not None:
        innermost = inner
        inner = getattr(inner, "batch_sampler", None) or getattr(inner, "sampler", None)
    if (set_epoch := getattr(innermost, "set_epoch", None)) is not None:
        set_epoch(epoch)
