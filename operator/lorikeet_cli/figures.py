"""A run's figures as lines for people."""

from collections.abc import Iterator

from lorikeet_api.contract import Metrics


def lines(metrics: Metrics) -> Iterator[str]:
    """Yield the figures that a run has, the most important first."""
    if metrics.eval_loss is not None:
        base = f", {metrics.base_eval_loss:.4g} before training" if metrics.base_eval_loss is not None else ""
        yield f"loss on held-out examples  {metrics.eval_loss:.4g}{base}"
    if metrics.eval_reward is not None:
        base = f", {metrics.base_eval_reward:.4g} before training" if metrics.base_eval_reward is not None else ""
        yield f"reward on held-out prompts {metrics.eval_reward:.4g}{base}"
    if metrics.general_loss is not None:
        base = f", {metrics.base_general_loss:.4g} before training" if metrics.base_general_loss is not None else ""
        yield f"loss on the general set    {metrics.general_loss:.4g}{base}"
    if metrics.perplexity is not None:
        yield f"perplexity                 {metrics.perplexity:.4g}"
    if metrics.train_loss is not None:
        yield f"training loss              {metrics.train_loss:.4g}"
    if metrics.steps is not None:
        seconds = f" in {metrics.train_seconds:.3g} s" if metrics.train_seconds is not None else ""
        device = f" on {metrics.device}" if metrics.device is not None else ""
        yield f"steps                      {metrics.steps}{seconds}{device}"
    if metrics.train_examples is not None:
        dropped = f", {metrics.dropped_examples} dropped" if metrics.dropped_examples else ""
        packed = f" in {metrics.packed_sequences} sequences" if metrics.packed_sequences is not None else ""
        yield f"examples                   {metrics.train_examples}{packed}{dropped}"
