"""Ends a rank that makes no step any more, with the stacks of its threads in the log.

What counts is a step, from the end of one to the end of the next, and the batches that it waits for. A rank is watched
from the end of its first step on, so that loading and compiling take what they take; and not while it evaluates, saves
a checkpoint or is told to stop.
"""

import faulthandler
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorikeet_run import log
from lorikeet_run.errors import RunError, stalled
from lorikeet_trainer.state import StageResult
from lorikeet_trainer.stop import STOP

LEAST_SECONDS: Final = 300.0
"""The least that is waited for a step where the request says nothing: a slow machine is none that hangs."""
MEDIANS: Final = 30.0
"""The same in times of what a step has taken."""
OTHERS_SECONDS: Final = 5.0
"""Between a rank's stacks and its end: ranks wait for each other, so the others write theirs, and the first one to end
has them stopped."""
_STEPS: Final = 32
"""The newest steps whose median counts."""
_POLL_SECONDS: Final = 0.5


@dataclass
class Watchdog(TrainerCallback):
    """Watches one rank from a thread. The last of the callbacks: what the others do after a step is not watched."""

    seconds: float | None
    """What a step may take; None: by what others have taken."""
    rank: int
    result: Path
    """Where a rank says how it ended."""
    now: Callable[[], float] = monotonic
    _since: float | None = None
    """When the step began that is watched; None while none is."""
    _began: float = 0.0
    """When the step began, watched or not."""
    _step: int = 0
    """Steps made."""
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=_STEPS))
    """Seconds of the newest steps."""
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def watching(self) -> bool:
        """Whether a step is watched now."""
        return self._since is not None

    @property
    def limit(self) -> float:
        """Seconds that a step may take."""
        if self.seconds is not None:
            return self.seconds
        return max(LEAST_SECONDS, MEDIANS * median(self._took))

    def check(self) -> RunError | None:
        """Return the end of a rank that has waited too long, else None."""
        since = self._since
        if since is None or STOP.requested or self.now() - since < self.limit:
            return None
        return stalled(self._step, self.rank, self.limit, median(self._took))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the thread."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note when the first step began; the others begin with the end of the one before."""
        if not self.watching:
            self._began = self.now()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch no more: the step is made."""
        self._since = None
        self._took.append(self.now() - self._began)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Watch the next step, unless a checkpoint or the end comes first."""
        self._step = state.global_step
        if not control.should_save:
            self._next(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Watch the step that follows a checkpoint."""
        self._next(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the thread."""
        self.close()

    def close(self) -> None:
        """End the thread, however training has ended."""
        self._since = None
        self._over.set()

    def _next(self, state: TrainerState, control: TrainerControl) -> None:
        if not control.should_training_stop and state.global_step < state.max_steps:
            self._since = self._began = self.now()

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            if (error := self.check()) is None:
                continue
            log.event("stall", level=logging.ERROR, rank=self.rank, step=self._step, message=error.message)
            faulthandler.dump_traceback(all_threads=True)
            if not self._over.wait(OTHERS_SECONDS) and self.check() is not None:
                self._end(error)

    def _end(self, error: RunError) -> None:
        """End the process past its other threads, which hang."""
        StageResult(exit_code=error.exit_code, record=error.record()).write(self.result)
        sys.stdout.flush()
        os._exit(error.exit_code)
