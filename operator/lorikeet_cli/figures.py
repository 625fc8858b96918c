"""A run's figures as lines for people."""

from collections.abc import Iterator

from lorikeet_api.contract import Metrics


def lines(metrics: Metrics) -> Iterator[str]:
    """Yield the figures that a run has, the most important first; what went wrong in it stands last, to be seen."""
    yield from _judged(metrics)
    if metrics.train_loss is not None:
        yield _line("training loss", f"{metrics.train_loss:.4g}")
    if metrics.steps is not None:
        planned = f" of {metrics.planned_steps}" if metrics.planned_steps is not None else ""
        seconds = f" in {metrics.train_seconds:.3g} s" if metrics.train_seconds is not None else ""
        device = f" on {metrics.device}" if metrics.device is not None else ""
        early = ": ended early, the loss on the held-out examples fell no longer" if planned else ""
        yield _line("steps", f"{metrics.steps}{planned}{seconds}{device}{early}")
    if (went := time_of(metrics)) is not None:
        yield _line("where the time went", went)
    if metrics.best_step is not None and metrics.best_eval_loss is not None:
        yield _line("best step", f"{metrics.best_step}, with a loss of {metrics.best_eval_loss:.4g}")
    if metrics.train_examples is not None:
        dropped = f", {metrics.dropped_examples} dropped" if metrics.dropped_examples else ""
        packed = f" in {metrics.packed_sequences} sequences" if metrics.packed_sequences is not None else ""
        yield _line("examples", f"{metrics.train_examples}{packed}{dropped}")
    for sign in metrics.signs or []:
        yield _line("sign that it went wrong", sign.told)


def time_of(metrics: Metrics) -> str | None:
    """Return how many seconds each part of a run took, the longest first; None where that was not told."""
    if metrics.steps_percent is None:
        return None
    parts = {
        f"optimiser steps ({metrics.steps_percent:.0f} %)": metrics.step_seconds,
        "fetching": metrics.fetch_seconds,
        "tokens": metrics.tokenize_seconds,
        "loading": metrics.load_seconds,
        "checkpoints": metrics.checkpoint_seconds,
        "evaluation": metrics.evaluate_seconds,
        "publishing": metrics.publish_seconds,
    }
    known = sorted(((seconds, name) for name, seconds in parts.items() if seconds is not None), reverse=True)
    return ", ".join(f"{seconds:.3g} s {name}" for seconds, name in known)


def _judged(metrics: Metrics) -> Iterator[str]:
    """Yield how the model does on rows that it was not trained on."""
    yield from _compared("loss on held-out examples", metrics.eval_loss, metrics.base_eval_loss)
    yield from _compared("accuracy on held-out rows", metrics.eval_accuracy, metrics.base_eval_accuracy)
    yield from _compared("reward on held-out prompts", metrics.eval_reward, metrics.base_eval_reward)
    if metrics.eval_kl is not None:
        yield _line("KL divergence there", f"{metrics.eval_kl:.4g} nats a token")
    yield from _compared("tokens of an answer there", metrics.eval_length, metrics.base_eval_length)
    if metrics.perplexity is not None:
        yield _line("perplexity", f"{metrics.perplexity:.4g}")
    yield from _compared("loss on the test set", metrics.test_loss, metrics.base_test_loss)
    yield from _compared("loss on the general set", metrics.general_loss, metrics.base_general_loss)


def _compared(name: str, value: float | None, before: float | None) -> Iterator[str]:
    if value is not None:
        yield _line(name, f"{value:.4g}" + (f", {before:.4g} before training" if before is not None else ""))


def _line(name: str, value: str) -> str:
    return f"{name:26} {value}"
