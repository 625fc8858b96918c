"""What a model is put to before training and after it: held-out rows, test set, general set, a few questions."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lorikeet_run.errors import RunError, not_finite
from lorikeet_run.report import Answer
from lorikeet_trainer.state import Evaluation, Standing


@dataclass(frozen=True)
class Exam:
    """The same before and after; each part is timed by its name."""

    held_out: Callable[[], Evaluation] | None
    test: Callable[[], Evaluation] | None
    general: Callable[[], Evaluation] | None
    answer: Callable[[], list[Answer]] | None
    """Answers the report's questions; None where there are none."""
    timed: Callable[[str], AbstractContextManager[None]]

    def before(self) -> Standing:
        """Return how the base model does. Raises RunError (ModelInvalid)."""
        found = self._take("base_")
        if not found.is_finite:
            raise RunError(
                "ModelInvalid",
                "the base model's loss on examples that are not trained on is not a finite number before training: its"
                " weights are damaged, or made for another precision",
            )
        return found

    def after(self, step: int) -> Standing:
        """Return how the trained model does, after `step` steps. Raises RunError (LossNotFinite)."""
        found = self._take("")
        for what, judged in (
            ("the evaluation loss", found.held_out),
            ("the loss on the test set", found.test),
            ("the loss on the general set", found.general),
        ):
            if judged is not None and not judged.is_finite:
                raise not_finite(what, step)
        return found

    def _take(self, prefix: str) -> Standing:
        found = Standing(
            held_out=self._judge(f"{prefix}eval", self.held_out),
            test=self._judge(f"{prefix}test", self.test),
            general=self._judge(f"{prefix}general", self.general),
        )
        if self.answer is None or not found.is_finite:
            return found
        with self.timed(f"{prefix}samples"):
            return found.model_copy(update={"answers": self.answer()})

    def _judge(self, part: str, judge: Callable[[], Evaluation] | None) -> Evaluation | None:
        if judge is None:
            return None
        with self.timed(part):
            return judge()
