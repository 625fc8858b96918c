"""Where a run's time went, as `status.metrics` tells it; the report tells every part apart."""

from collections.abc import Mapping
from typing import Any, Final

_PARTS: Final = {
    "tokenize_seconds": ("render",),
    "load_seconds": ("probe", "load", "reference"),
    "evaluate_seconds": (
        *("base_eval", "base_test", "base_general", "base_samples"),
        *("evals", "last_eval", "eval", "test", "general", "samples"),
    ),
    "step_seconds": ("steps",),
    "checkpoint_seconds": ("checkpoints", "save"),
}
"""Fields of `Metrics`, and what of `MetricsFile.seconds` each adds up."""


def spent(fetch: float, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the fields of `Metrics` that say where the time went, and the share of it in optimiser steps.

    Args:
        fetch: seconds of fetching and checking.
        seconds: how long the other parts took, as `MetricsFile.seconds` has them.
    """
    found = {"fetch_seconds": fetch}
    found |= {name: sum(seconds.get(part, 0.0) for part in parts) for name, parts in _PARTS.items()}
    return {**found, "steps_percent": 100.0 * found["step_seconds"] / sum(found.values())}
