"""Where a run's time goes: its parts as `MetricsFile.seconds` has them, the report, and `status.metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Part:
    """A part of a run."""

    title: str
    """As the report calls it."""
    field: str
    """The field of `Metrics` in which it is counted."""


_TOKENIZE, _LOAD, _STEP = "tokenize_seconds", "load_seconds", "step_seconds"
_CHECKPOINT, _EVALUATE = "checkpoint_seconds", "evaluate_seconds"

PARTS: Final = {
    "probe": Part("Finding the micro batch", _LOAD),
    "import": Part("Loading the libraries", _LOAD),
    "render": Part("Examples to tokens", _TOKENIZE),
    "load": Part("Loading the model", _LOAD),
    "reference": Part("Setting up, the reference with it", _LOAD),
    "base_eval": Part("Evaluation before training", _EVALUATE),
    "base_test": Part("Test set before training", _EVALUATE),
    "base_general": Part("General set before training", _EVALUATE),
    "base_samples": Part("Answers before training", _EVALUATE),
    "steps": Part("Optimiser steps", _STEP),
    "checkpoints": Part("Checkpoints", _CHECKPOINT),
    "evals": Part("Evaluations on the way", _EVALUATE),
    "last_eval": Part("Evaluation after the last step", _EVALUATE),
    "eval": Part("Evaluation after training", _EVALUATE),
    "test": Part("Test set after training", _EVALUATE),
    "general": Part("General set after training", _EVALUATE),
    "samples": Part("Answers after training", _EVALUATE),
    "save": Part("Saving the result", _CHECKPOINT),
}
"""Those after it has fetched, in order, by their names in `MetricsFile.seconds`."""


def spent(fetch: float, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the fields of `Metrics` that say where the time went until the result is published.

    Args:
        fetch: seconds of fetching and checking.
        seconds: how long the other parts took, as `MetricsFile.seconds` has them.
    """
    found = {"fetch_seconds": fetch} | dict.fromkeys((part.field for part in PARTS.values()), 0.0)
    for name, part in PARTS.items():
        found[part.field] += seconds.get(name, 0.0)
    return found
