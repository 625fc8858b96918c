"""The run's figures as the page shows them: a few large ones, then all."""

import math
from dataclasses import dataclass

from lorikeet_api.contract import Metrics
from lorikeet_run.report import text


@dataclass(frozen=True)
class Tile:
    """A large figure."""

    name: str
    value: str
    note: str = ""
    """What it is to be compared with."""
    better: bool | None = None
    """Whether the comparison is good news; None where it is no comparison, or nothing has changed."""
    rose: bool = False
    """Whether it is more than before."""


@dataclass(frozen=True)
class Figure:
    """A row of the table of all figures."""

    name: str
    """As in `status.metrics`."""
    value: str
    about: str


def tiles(metrics: Metrics) -> list[Tile]:
    """Return what a reader wants to know first, as far as the run has it."""
    found = [_compared("Held-out loss", metrics.eval_loss, metrics.base_eval_loss)]
    found.append(_compared("Perplexity", metrics.perplexity, _perplexity(metrics.base_eval_loss)))
    found.append(_compared("Held-out accuracy", metrics.eval_accuracy, metrics.base_eval_accuracy, rises=True))
    found.append(_compared("Held-out reward", metrics.eval_reward, metrics.base_eval_reward, rises=True))
    found.append(_compared("Test loss", metrics.test_loss, metrics.base_test_loss))
    found.append(_compared("General loss", metrics.general_loss, metrics.base_general_loss))
    if metrics.train_loss is not None:
        found.append(Tile("Training loss", text.number(metrics.train_loss), "mean over the run"))
    if metrics.steps is not None:
        note = f"{metrics.train_examples:,} examples an epoch" if metrics.train_examples is not None else ""
        if metrics.packed_sequences is not None:
            note += f", in {metrics.packed_sequences:,} sequences"
        if metrics.planned_steps is not None:
            note = f"of {metrics.planned_steps:,}: the held-out loss fell no longer"
        found.append(Tile("Steps", f"{metrics.steps:,}", note))
    if metrics.best_step is not None and metrics.best_eval_loss is not None:
        found.append(
            Tile("Best step", f"{metrics.best_step:,}", f"held-out loss {text.number(metrics.best_eval_loss)}")
        )
    if metrics.train_seconds is not None:
        speed = metrics.tokens_per_second
        note = f"{text.number(speed)} tokens a second" if speed is not None else ""
        found.append(Tile("Training time", text.duration(metrics.train_seconds), note))
    if metrics.peak_memory_bytes is not None:
        found.append(Tile("Peak memory", text.size(metrics.peak_memory_bytes), metrics.device or ""))
    if metrics.trainable_parameters is not None and metrics.trainable_percent is not None:
        share = f"{text.percent(metrics.trainable_percent)} of all"
        found.append(Tile("Trained parameters", _count(metrics.trainable_parameters), share))
    return [tile for tile in found if tile is not None]


def figures(metrics: Metrics) -> list[Figure]:
    """Return all figures that the run has, with what the API says about each."""
    return [
        Figure(info.alias or name, _written(name, value), info.description or "")
        for name, info in type(metrics).model_fields.items()
        if (value := getattr(metrics, name)) is not None and name != "signs"  # which have a table of their own
    ]


def _compared(name: str, value: float | None, before: float | None, *, rises: bool = False) -> Tile | None:
    """Return a figure beside what it was before training; `rises`: whether more of it is better."""
    if value is None:
        return None
    if before is None or not math.isfinite(before):
        return Tile(name, text.number(value))
    note = f"{text.number(before)} before training"
    rose = value > before
    return Tile(name, text.number(value), note, None if value == before else rose == rises, rose)


def _perplexity(loss: float | None) -> float | None:
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None


def _count(number: int) -> str:
    for unit, per in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= per:
            return f"{number / per:.3g} {unit}"
    return str(number)


def _written(name: str, value: object) -> str:
    if isinstance(value, int):
        return text.size(value) if name.endswith("_bytes") else f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if name.endswith("_seconds"):
        return text.duration(value)
    return text.percent(value) if name.endswith("_percent") else text.number(value)
