"""What a run tells on the way: log lines, the loss curve, the evaluations, and its progress to the operator."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorikeet_api.signs import Sign, SignName
from lorikeet_run import log
from lorikeet_run.errors import failed_by, not_finite
from lorikeet_run.report import Answer
from lorikeet_trainer.evaluate import Interrupted
from lorikeet_trainer.points import Feed
from lorikeet_trainer.progress import Reporter
from lorikeet_trainer.selection import EndedEarly, Selection
from lorikeet_trainer.signs import Lookout
from lorikeet_trainer.state import Evaluation, LossPoint, PacePoint

SAMPLED: Final = 8
"""Evaluations on the way at which answers are sampled, at most: they may take longer than the evaluation does."""


@dataclass
class Report(TrainerCallback):
    """Writes a log line for each logged step, keeps the loss curve, tells progress, and evaluates on the way."""

    evaluate: Callable[[], Evaluation] | None
    answer: Callable[[], list[Answer]] | None
    """Samples answers, at some of the evaluations on the way."""
    eval_steps: int | None
    reporter: Reporter
    memory: Callable[[], int]
    """Bytes that are held now."""
    selection: Selection
    feed: Feed
    """What trackers read."""
    names: Mapping[str, str]
    """What trl logs beside the loss, by its names: how the curve calls it."""
    lookout: Lookout
    fail_on: Collection[SignName] = ()
    """Signs that end the run."""
    curve: list[LossPoint] = field(default_factory=list)
    pace: list[PacePoint] = field(default_factory=list)
    eval_seconds: float = 0.0
    """Time that this attempt spent in evaluations, which is none of training's."""
    has_ended_early: bool = False
    """Whether the loss on the held-out examples fell no longer before all steps were made."""
    checkpoint_seconds: float = 0.0
    """Time that this attempt spent in saving checkpoints."""
    _figures: dict[str, float | None] = field(default_factory=dict)
    """The newest of each, by transformers' names."""
    _began: tuple[float, int] = (0.0, 0)
    """When this attempt began to train (monotonic clock), and after which step."""
    _logged: tuple[float, float] = (0.0, 0.0)
    """Seconds of steps alone and tokens seen, at the last logged step."""
    _idle_since: float = 0.0
    """When the last step had ended, or what of a checkpoint was counted since (monotonic clock)."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell of one logged step."""
        if logs is None or "loss" not in logs:
            return
        rate, norm = logs.get("learning_rate"), logs.get("grad_norm")
        figures = {ours: logs[name] for name, ours in self.names.items() if name in logs}
        kept = norm if norm is not None and math.isfinite(norm) else None
        self.curve.append(
            LossPoint(step=state.global_step, loss=logs["loss"], learning_rate=rate, grad_norm=kept, figures=figures)
        )
        self._keep_pace(state)
        told: dict[str, Any] = {"loss": logs["loss"], "learning_rate": rate, "grad_norm": norm}
        place = {"step": state.global_step, "steps": state.max_steps, "epoch": round(state.epoch or 0, 3)}
        log.event("step", **{**place, **told, **figures})
        names = ("loss", "learning_rate", "grad_norm")
        self._figures |= {name: logs.get(name) for name in names} | {"current_epoch": state.epoch}
        self._tell(state)
        self.heed(self.lookout.look(self.curve), state.global_step)

    def heed(self, fresh: Sequence[Sign], step: int) -> None:
        """Tell of signs that were not seen before. Raises RunError by the name of one that is to end the run."""
        for sign in fresh:
            log.event("sign", sign=sign.name, step=sign.step, message=sign.told)
        if fresh:
            self.reporter.signs(self.lookout.seen)
        for sign in fresh:
            if sign.name in self.fail_on:
                raise failed_by(sign, self.lookout.seen, step)

    def count_checkpoint(self) -> None:
        """Count the time since the last step, or since the last call, as a checkpoint's."""
        now = monotonic()
        self.checkpoint_seconds += now - self._idle_since
        self._idle_since = now

    def _keep_pace(self, state: TrainerState) -> None:
        now, tokens = self._clock(), float(state.num_input_tokens_seen)
        before, seen = self._logged
        self._logged = now, tokens
        pace = (tokens - seen) / max(now - before, 1e-9)
        self.pace.append(
            PacePoint(step=state.global_step, tokens_per_second=pace, memory_bytes=self.memory(), time=time())
        )

    def _clock(self) -> float:
        """Return a time (seconds) that stands still during evaluations and checkpoints."""
        return monotonic() - self.eval_seconds - self.checkpoint_seconds

    def _tell(self, state: TrainerState) -> None:
        self.feed.write(self.curve, self.pace)
        start, first = self._began
        made = state.global_step - first
        steps = state.global_step if self.has_ended_early else state.max_steps
        rest = steps - state.global_step
        left = (monotonic() - start) / made * rest if made > 0 else (None if rest else 0.0)
        self.reporter.training(state.global_step, steps, left, self._figures)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See what the attempt before saw, and make up for an evaluation that it left out when it was told to stop.

        Raises EndedEarly.
        """
        self._began = monotonic(), state.global_step
        self._logged = self._clock(), float(state.num_input_tokens_seen)
        self._idle_since = monotonic()
        self._tell(state)
        self.heed(self.lookout.look_back(self.curve), state.global_step)
        if state.global_step > 0 and not self.has_evaluated(state.global_step) and self._is_due(state):
            self._evaluate(state, control)
        if self.selection.has_stalled(self.curve):
            self._end_early(state)
            raise EndedEarly

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate every `eval_steps` steps, or after an epoch where no steps are given; log the last step anyway."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self._is_due(state) and not control.should_training_stop:
            self._evaluate(state, control)
            if self.has_evaluated(state.global_step) and self.selection.has_stalled(self.curve):
                self._end_early(state)
                control.should_training_stop = True
        self._idle_since = monotonic()

    def _is_due(self, state: TrainerState) -> bool:
        # The end of the run has an evaluation of its own.
        if self.evaluate is None or state.global_step >= state.max_steps:
            return False
        if self.eval_steps is None:
            return float(state.epoch or 0.5).is_integer()
        return state.global_step % self.eval_steps == 0

    def _is_sampled(self, state: TrainerState) -> bool:
        """Whether answers are sampled at this evaluation: at SAMPLED of a run's, about, evenly spread."""
        number, planned = float(state.epoch or 0), float(state.num_train_epochs)
        if self.eval_steps is not None:
            number, planned = state.global_step / self.eval_steps, state.max_steps / self.eval_steps
        return round(number) % max(1, math.ceil(planned / SAMPLED)) == 0

    def _evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        assert self.evaluate is not None  # noqa: S101 - what is due can be done
        start = monotonic()
        try:
            found = self.evaluate()
        except Interrupted:
            control.should_save = control.should_training_stop = True
            return
        answers = self.answer() if self.answer is not None and self._is_sampled(state) else None
        repeated = None if answers is None else [answer.repeated for answer in answers]
        seconds = monotonic() - start
        self.eval_seconds += seconds
        self._note(state.global_step, found, repeated)
        self._figures["eval_loss"] = found.loss
        self._tell(state)
        log.event(
            "eval",
            step=state.global_step,
            eval_loss=found.loss,
            accuracy=found.accuracy,
            margin=found.margin,
            **{name: value for name in ("reward", "kl", "length") if (value := getattr(found, name)) is not None},
            seconds=round(seconds, 3),
        )
        self.heed(self.lookout.look(self.curve), state.global_step)

    def has_evaluated(self, step: int) -> bool:
        """Whether the curve has the loss on the held-out examples after a step."""
        return any(point.step == step and point.eval_loss is not None for point in self.curve)

    def evaluate_last(self, step: int) -> None:
        """Evaluate after the last step, which may be the best. Raises RunError (LossNotFinite)."""
        if self.evaluate is not None and not self.has_evaluated(step):
            self._note(step, self.evaluate())

    def _note(self, step: int, found: Evaluation, repeated: list[float] | None = None) -> None:
        if not found.is_finite:
            raise not_finite("the evaluation loss", step)
        self.curve.append(LossPoint(step=step, eval_loss=found.loss, repeated=repeated))
        self.selection.consider(self.curve[-1])

    def _end_early(self, state: TrainerState) -> None:
        """Tell that no more steps are made than were."""
        self.has_ended_early = True
        step, best = state.global_step, self.selection.best
        self._tell(state)
        log.event("early_stop", step=step, steps=state.max_steps, best_step=best.step if best is not None else None)
