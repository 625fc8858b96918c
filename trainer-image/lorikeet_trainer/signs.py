"""Signs that a run goes wrong, read off its loss curve, sampled answers, and at its end a general set (pure).

What is usual is told by the points before, so that no number fits one model alone. Losses of single examples vary by
more than half: of runs of 1,000 points that vary so and are well, about one in a hundred shows a spike. What is logged
of whole batches varies far less, and of such runs none does.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from statistics import fmean, median
from typing import Final

from lorikeet_api.signs import Sign
from lorikeet_trainer.state import LossPoint

_WINDOW: Final = 32
"""Logged points by which it is told how much they vary."""
_NEAR: Final = 8
"""The newest of them, whose median is what is usual at the next one; fewer tell nothing."""
_LASTING: Final = 5
"""A state that lasts so many logged points is no chance."""
_DEVIATIONS: Final = 6.0
"""What stands out is so many standard deviations above the usual, by how much neighbours differ beyond the trend,"""
_REACH: Final = 3.0
"""and so many times as far above it as any point before was above what was usual then."""
_NORMAL: Final = 1.4826 / math.sqrt(2)
"""Standard deviations of normal numbers in the median absolute difference of two of them."""

_RISE: Final = 0.05
"""What counts as a rise of the held-out loss: so much of it, and as many nats at least, 5 % of the perplexity."""
_SPIKE: Final = 1.5
"""Times the usual loss that a spike has at least; and _SPIKE_NATS more."""
_SPIKE_NATS: Final = 0.25
_EXPLOSION: Final = 10.0
"""Times the usual gradient norm, and times maxGradNorm: what is clipped that hard was no ordinary batch."""
_EXPLODED: Final = 100.0
"""Times maxGradNorm, or 1 if that is less, in a norm that is so from the beginning."""
_VANISHED: Final = 1e-4
"""Gradient norm for each unit of the loss below which a model that has something to learn stands still."""
_LEARNT: Final = 0.01
"""Loss below which there is little left to learn, and gradients may be small."""
_FORGOTTEN_NATS: Final = 0.1
"""Rise of the loss on the general set that counts, 10 % of the perplexity; and _FORGOTTEN of it at least."""
_FORGOTTEN: Final = 0.05
_REPEATING: Final = 0.5
"""Share of an answer's 4-grams that stand in it before, from which on it repeats itself."""


@dataclass
class Lookout:
    """Keeps the first sign of each name."""

    max_grad_norm: float
    compares_losses: bool = True
    """Whether the training loss measures what the held-out one does: else neither tells of overfitting."""
    repeated: Sequence[float] = ()
    """The repeated shares of the sampled answers before training; empty where there are none."""
    meant: Sequence[float] = ()
    """Those of the answers that the data have to the same prompts."""
    seen: list[Sign] = field(default_factory=list)

    def look(self, curve: Sequence[LossPoint]) -> list[Sign]:
        """Return the signs, not seen before, that the newest point of a curve shows."""
        found = [*of_newest(curve, self.max_grad_norm), self._lasting_repetition(curve)]
        return self.add(sign for sign in found if sign is not None and self._counts(sign))

    def look_at_answers(self, step: int, repeated: Sequence[float]) -> list[Sign]:
        """Return the sign, not seen before, that the trained model's answers show, after `step` steps."""
        return self.add([repetition(step, self.repeated, repeated, self.meant)])

    def _lasting_repetition(self, curve: Sequence[LossPoint]) -> Sign | None:
        """Find answers sampled on the way that repeat themselves, two evaluations in a row.

        And more of them than before training: a model that has not learnt to stop yet goes on as it began.
        """
        if curve[-1].repeated is None:
            return None
        sampled = (point for point in reversed(curve) if point.repeated is not None)
        newest = [(point.step, point.repeated or ()) for point in islice(sampled, 2)]
        counts = [len(_repeating(shares, self.meant)) for _, shares in newest]
        if len(newest) < 2 or min(counts) <= sum(share >= _REPEATING for share in self.repeated):
            return None
        step, shares = newest[-1]
        return repetition(step, self.repeated, shares, self.meant)

    def _counts(self, sign: Sign) -> bool:
        return self.compares_losses or sign.name != "Overfitting"

    def look_back(self, curve: Sequence[LossPoint]) -> list[Sign]:
        """Return those that the curve of an earlier attempt shows: the same that it has seen."""
        return [sign for end in range(1, len(curve) + 1) for sign in self.look(curve[:end])]

    def add(self, signs: Iterable[Sign | None]) -> list[Sign]:
        """Keep signs; return those whose name was not seen before."""
        known = {sign.name for sign in self.seen}
        fresh = [sign for sign in signs if sign is not None and sign.name not in known]
        self.seen += fresh
        return fresh


def of_newest(curve: Sequence[LossPoint], max_grad_norm: float) -> Iterator[Sign | None]:
    """Yield what the newest point of a curve shows; gradients are clipped to `max_grad_norm`."""
    newest = curve[-1]
    if newest.eval_loss is not None:
        yield _overfitting(curve, newest.step, newest.eval_loss)
    if newest.loss is not None:
        logged = list(islice((point for point in reversed(curve) if point.loss is not None), _WINDOW + 1))
        yield _spike(logged[0].step, [point.loss for point in logged if point.loss is not None])
        norms = [(point.step, point.grad_norm) for point in logged if point.grad_norm is not None]
        if newest.grad_norm is not None:
            yield _explosion(norms, max_grad_norm)
            yield _vanishing(logged[:_LASTING])


def _overfitting(curve: Sequence[LossPoint], step: int, now: float) -> Sign | None:
    """Compare a held-out loss with the lowest one, and the training losses since that with as many before it."""
    before = [(point.eval_loss, point.step) for point in curve[:-1] if point.eval_loss is not None]
    lowest, since = min(before, default=(math.inf, 0))
    if now - lowest < max(_RISE, _RISE * abs(lowest)):
        return None
    logged = [(point.step, point.loss) for point in curve if point.loss is not None]
    later = [loss for at, loss in logged if at > since]
    earlier = [loss for at, loss in logged if at <= since][-len(later) :]
    if not later or not earlier or fmean(later) >= fmean(earlier):
        return None
    return Sign(
        name="Overfitting",
        step=since,
        message=f"the held-out loss rose from {lowest:.4g} to {now:.4g} at step {step}, while the training loss fell"
        f" from {fmean(earlier):.4g} to {fmean(later):.4g}",
    )


def _spike(step: int, losses: Sequence[float]) -> Sign | None:
    """Compare the first of the losses, the newest, with the others."""
    newest, *others = losses
    if len(others) < _NEAR or min(losses) <= 0:  # what may be negative knows no ratios
        return None
    usual = median(others[:_NEAR])
    if newest - usual < _SPIKE_NATS or not _stands_out(newest, others, _SPIKE):
        return None
    message = f"the training loss was {newest:.4g}, {newest / usual:.3g} times the usual of the points before"
    return Sign(name="LossSpike", step=step, message=message)


def _explosion(norms: Sequence[tuple[int, float]], max_grad_norm: float) -> Sign | None:
    """Compare the newest gradient norm, the first, with the others; or find all of the newest ones huge."""
    (step, newest), *others = norms
    usual = [norm for _, norm in others if norm > 0]
    clipped = newest > _EXPLOSION * max_grad_norm
    if clipped and len(usual) >= _NEAR and _stands_out(newest, usual, _EXPLOSION):
        times = newest / median(usual[:_NEAR])
        message = (
            f"the gradient norm before clipping was {newest:.4g}, {times:.3g} times the usual of the points before"
        )
        return Sign(name="ExplodingGradients", step=step, message=message)
    huge = _EXPLODED * max(1.0, max_grad_norm)
    lasting = norms[:_LASTING]
    if len(lasting) == _LASTING and all(norm > huge for _, norm in lasting):
        message = f"the gradient norm before clipping was above {huge:.4g} in {_LASTING} points in a row"
        return Sign(name="ExplodingGradients", step=lasting[-1][0], message=message)
    return None


def _vanishing(newest: Sequence[LossPoint]) -> Sign | None:
    lasting = [
        point
        for point in newest
        if point.grad_norm is not None
        and point.loss is not None
        and abs(point.loss) > _LEARNT
        and point.grad_norm < _VANISHED * abs(point.loss)
    ]
    if len(lasting) < _LASTING:
        return None
    first = lasting[-1]
    message = f"the gradient norm was {first.grad_norm:.3g} and less in {_LASTING} points in a row, at a loss of"
    return Sign(name="VanishingGradients", step=first.step, message=f"{message} {first.loss:.4g}")


def _stands_out(value: float, others: Sequence[float], times: float) -> bool:
    """Return whether a positive number is far above those before it, newest first, and `times` the usual at least."""
    logs = [math.log(one) for one in reversed(others)]
    above = math.log(value) - median(logs[-_NEAR:])
    changes = [next_one - one for one, next_one in pairwise(logs)]
    trend = median(changes)
    spread = _NORMAL * median(abs(change - trend) for change in changes)
    reach = max(
        one - median(logs[max(0, place - _NEAR) : place]) for place, one in enumerate(logs) if place >= _NEAR // 2
    )
    return above > max(math.log(times), _DEVIATIONS * spread, _REACH * reach)


def repetition(step: int, before: Sequence[float], after: Sequence[float], expected: Sequence[float]) -> Sign | None:
    """Find answers that repeat themselves and are not meant to, by the repeated shares of answers to the same prompts.

    Args:
        step: optimiser steps made.
        before: of the answers before training; empty where there are none.
        after: of those after it.
        expected: of what the data say.
    """
    repeating = _repeating(after, expected)
    if not repeating:
        return None
    then = sum(share >= _REPEATING for share in before)
    return Sign(
        name="Repetition",
        step=step,
        message=f"{len(repeating)} of {len(after)} sampled answers repeat themselves, {fmean(repeating):.0%} of their"
        f" 4-grams; {then} did before training",
    )


def _repeating(after: Sequence[float], expected: Sequence[float]) -> list[float]:
    """Return the shares of the answers that repeat themselves and are not meant to; none where fewer than half do."""
    meant = [share >= _REPEATING for share in expected]
    found = [share for share, is_meant in zip(after, meant, strict=False) if share >= _REPEATING and not is_meant]
    return found if 2 * len(found) >= len(after) else []


def forgetting(step: int, before: float, after: float) -> Sign | None:
    """Find a rise of the loss on the general set (nats a token) over training, which ended after `step` steps."""
    if after - before < max(_FORGOTTEN_NATS, _FORGOTTEN * before):
        return None
    message = f"the loss on the general set rose from {before:.4g} before training to {after:.4g}"
    return Sign(name="Forgetting", step=step, message=message)
