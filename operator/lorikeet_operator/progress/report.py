"""Turns what a pod has posted into the status's `progress` (pure)."""

import math
from collections.abc import Mapping
from typing import Any, Final

from lorikeet_api.contract import TERMINATION_LIMIT
from lorikeet_api.progress import Progress, TrainerStatus

_NAMES: Final = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "current_epoch": "epoch",
}
_COUNTS: Final = {"current_step": "step", "total_steps": "total_steps"}
"""transformers' names of metrics, and ours."""


def progress_of(told: TrainerStatus, pod: str, now: str) -> Progress:
    """Return what a post of a pod says; `now` is an RFC 3339 time."""
    values = {metric.name: metric.value for metric in told.metrics or []}
    found: dict[str, Any] = {
        "stage": told.stage,
        "percent": told.progress_percentage,
        "eta_seconds": told.estimated_remaining_seconds,
        "signs": told.signs,
        **_numbers(values, _NAMES),
        **{name: int(value) for name, value in _numbers(values, _COUNTS).items()},
    }
    if told.record is not None:
        message = told.record.message[:TERMINATION_LIMIT]
        found["record"] = told.record.model_copy(update={"message": message})
    return Progress.model_validate({**found, "pod": pod, "updated_time": now})


def after(before: Progress | None, news: Progress) -> Progress:
    """Return the progress after `news`: what they do not tell stays, unless another pod, another attempt, told it."""
    if before is None or before.pod != news.pod:
        return news
    absent = [name for name in Progress.model_fields if getattr(news, name) is None]
    return news.model_copy(update={name: getattr(before, name) for name in absent})


def merged(held: Progress | None, news: Progress) -> Progress | None:
    """Return what the status is to hold, which holds `held` now; None if `news` change nothing of it.

    Posts of one pod reach several replicas, and each writes at its own time: news may be older than what is there.
    How a pod has ended is news for as long as no other's end is told.
    """
    late = held is not None and held.updated_time > news.updated_time
    if held is None or held.pod != news.pod:
        ends = news.record is not None and (held is None or held.record is None)
        return None if late and not ends else news
    if held.record is not None:
        return None  # its end is told
    return after(news, held) if late and news.record is None else after(held, news)


def _numbers(values: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, float]:
    """Return the finite numbers among `values`, by our names; what is none has nothing to tell."""
    found: dict[str, float] = {}
    for theirs, ours in wanted.items():
        try:
            number = float(values[theirs])
        except (KeyError, ValueError):
            continue
        if math.isfinite(number):
            found[ours] = number
    return found
