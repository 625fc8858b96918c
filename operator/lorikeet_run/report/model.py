"""What a run's report shows."""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator

from lorikeet_api.base import Model
from lorikeet_api.contract import Metrics, RunContract, SourceDigest, Template, Use
from lorikeet_api.tracking import TrackerName


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite)]
"""A measured number; None where there is none, or none that is finite: the plot has a gap there."""

Unit = Literal["number", "bytes"]
"""How a chart's values are written."""


class Series(Model):
    """One line of a chart."""

    name: str
    """What the legend says."""
    points: list[tuple[int, Measured]]
    """Steps, in order, each with its value."""


class Chart(Model):
    """One plot over the steps."""

    title: str
    """What is drawn."""
    about: str
    """The same in one sentence: unit, and how it was measured."""
    series: list[Series]
    """Its lines; those without a value are left out, and a chart without any, too."""
    unit: Unit = "number"
    """How its values are written."""
    from_zero: bool = False
    """Whether the axis begins at zero: for amounts, where half the height is to mean half as much."""


class Span(Model):
    """One part of the run's time."""

    name: str
    """What was done."""
    seconds: float
    """How long it took."""
    is_steps: bool = False
    """Whether these are the optimiser's steps, which is what the time is for."""


class Answer(Model):
    """What the model said to a prompt."""

    text: str
    """Its words, without special tokens."""
    ended: bool
    """Whether it came to an end by itself, before it was cut off."""
    repeated: float = 0.0
    """Share of its 4-grams of tokens that stand in it before; 0 of a short one."""


class Sample(Model):
    """One held-out prompt, answered greedily before training and after it."""

    prompt: str
    """The prompt as the model has it, special tokens too."""
    expected: str
    """What the data says to it; a long one's beginning. Empty where the data has prompts alone."""
    before: Answer
    """Before training."""
    after: Answer
    """After training."""


class SourceProfile(Model):
    """One data source."""

    uri: str
    """Where it was read from."""
    rows: int
    """Examples in it."""
    format: str
    """Shape of its rows."""
    use: Use
    """What it is for."""


class LengthBin(Model):
    """One bar of the histogram of lengths."""

    first: int
    """The shortest length that counts here, in tokens."""
    last: int
    """The longest."""
    examples: int
    """How many training examples have such a length."""


class DataProfile(Model):
    """What the data looked like once it was rendered."""

    sources: list[SourceProfile]
    """The training sources in the request's order, then the evaluation set, the test set and the general set."""
    train_examples: int
    """Training examples that were kept, each counted once."""
    held_out_examples: int
    """Held-out examples that were kept."""
    test_examples: int = 0
    """Examples of the test set that were kept."""
    general_examples: int = 0
    """Examples of the general set that were kept."""
    dropped: int
    """Examples left out because they were too long."""
    trained_tokens: int
    """Tokens of the training examples that the loss counts, each example counted once."""
    lengths: list[LengthBin]
    """How long the training examples are."""


class TrackerState(Model):
    """How one of the run's trackers stands."""

    name: TrackerName
    """Which."""
    run: str | None = None
    """Where the run is found in it: a URL, or a folder of the run's. Absent where it could not be begun."""
    warning: str | None = None
    """What it has not got, and why; absent where it has everything."""


class RunReport(Model):
    """Everything on the page."""

    contract: RunContract
    """The request, resolved."""
    metrics: Metrics
    """The run's figures."""
    charts: list[Chart]
    """The plots, in the page's order."""
    starts: list[SourceDigest] = []
    """The adapter that the run went on from, if it did; its reward models."""
    spans: list[Span]
    """Where the time went, in the order of the run."""
    trackers: list[TrackerState] = []
    """Where the run was followed."""
    samples: list[Sample]
    """Answers before and after training; empty where there was nothing to ask."""
    profile: DataProfile
    """What the data looked like."""
    template: Template
    """The chat template of training."""
    base_model: SourceDigest
    """The base model as it was read."""
    data: list[SourceDigest]
    """The data as it was read: training sources in the request's order, then the evaluation set, the test set and the
    general set."""
    libraries: dict[str, str]
    """Versions of the libraries that decide the result."""
