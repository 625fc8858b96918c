"""Signs that a run goes wrong: what they are called in a request, in a run's figures and as the reason of its end."""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from lorikeet_api.base import Model, listed

SignName = Literal[
    "Overfitting",
    "LossSpike",
    "VanishingGradients",
    "ExplodingGradients",
    "Repetition",
    "Forgetting",
]
SIGN_NAMES: Final[tuple[SignName, ...]] = get_args(SignName)

ADVICE: Final[dict[SignName, str]] = {
    "Overfitting": "lower training.epochs or training.learningRate, or give more data",
    "LossSpike": "look at the data of that step, lower training.learningRate or lengthen training.warmupRatio",
    "VanishingGradients": "raise training.learningRate or the adapter's alpha, and look at the base model's weights",
    "ExplodingGradients": "lower training.learningRate or training.maxGradNorm, or lengthen training.warmupRatio",
    "Repetition": "lower training.epochs or training.learningRate, and look for repetitions in the data",
    "Forgetting": "mix general examples into dataset.train, or lower training.learningRate or training.epochs",
}
"""What to do about each, as a sentence's second half."""

BY_EVALUATION: Final[tuple[SignName, ...]] = ("Overfitting", "Repetition")
"""Those that only held-out examples show."""


class Sign(Model):
    """A sign that a run goes wrong: the first of its name."""

    name: SignName
    """What it is called."""
    step: int
    """Optimiser step at which it begins."""
    message: Annotated[str, Field(max_length=160)]
    """What was measured."""

    @property
    def told(self) -> str:
        """The sign in one sentence, with what to do."""
        return f"{self.name} from step {self.step} on: {self.message}; {ADVICE[self.name]}"


SignList = Annotated[list[Sign], listed(0, len(SIGN_NAMES))]
"""Signs of a run, one of each name, in the order in which they were seen."""


class Signs(Model):
    """What signs that a run goes wrong mean for it. They are warnings: in its log, its progress, figures and report."""

    fail_on: Annotated[list[SignName], listed(0, len(SIGN_NAMES))] = []
    """Signs that end the run, with their name as the reason; nothing is published then, and it is not tried again. Its
    checkpoints stay: a job that asks for the same without failOn goes on from the newest."""


def fails_on(name: SignName) -> str:
    """Return how the API server knows that a spec's training ends by a sign."""
    return f"has(self.training.signs) && has(self.training.signs.failOn) && '{name}' in self.training.signs.failOn"
