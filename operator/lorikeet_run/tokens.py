"""Rendered rows: what objectives learn from, as token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

IGNORED: Final = -100
"""Label of a token that the loss does not count (torch's `ignore_index`)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One rendered example, in the 32-bit integers that hold any vocabulary."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    """As input_ids, with IGNORED where the loss counts no token, such as the first one, which nothing predicts."""

    @property
    def trained(self) -> int:
        """Tokens that the loss counts."""
        return int((self.labels != IGNORED).sum())

    @property
    def answer(self) -> int:
        """Where the answer begins: at the first token that the loss counts; behind a prompt that has none."""
        counted = self.labels != IGNORED
        return int(counted.argmax()) if counted.any() else len(counted)

    @property
    def parts(self) -> tuple["Tokens", ...]:
        """The sequences that it is made of."""
        return (self,)

    def of(self, parts: Sequence["Tokens"]) -> "Tokens":
        """Return the same row of other parts."""
        (tokens,) = parts
        return tokens

    def answered_from(self, begin: int) -> "Tokens":
        """Return the prompt with the answer alone behind it, each token of which counts; it begins at `begin`."""
        end = int((self.labels != IGNORED).nonzero()[0][-1]) + 1
        labels = self.input_ids[:end].copy()
        labels[:begin] = IGNORED
        return Tokens(self.input_ids[:end], labels)

    def answered_by(self, other: "Tokens", max_length: int) -> "Tokens":
        """Return this prompt with the answer of another row, cut to `max_length` but for one token of the answer."""
        rest = max(1, max_length - self.answer)
        joined = np.concatenate([self.input_ids[: self.answer], other.input_ids[other.answer :][:rest]])
        return Tokens(joined, joined.copy()).answered_from(self.answer)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, of which one is better. Both begin at the same token."""

    chosen: Tokens
    rejected: Tokens

    @property
    def trained(self) -> int:
        """Tokens of both answers."""
        return self.chosen.trained + self.rejected.trained

    @property
    def parts(self) -> tuple[Tokens, ...]:
        """The sequences that it is made of."""
        return (self.chosen, self.rejected)

    def of(self, parts: Sequence[Tokens]) -> "Pair":
        """Return the same row of other parts."""
        return Pair(*parts)


@dataclass(frozen=True, slots=True)
class _Alone:
    """One sequence with what is known of it."""

    tokens: Tokens

    @property
    def trained(self) -> int:
        """Tokens that the loss counts."""
        return self.tokens.trained

    @property
    def parts(self) -> tuple[Tokens, ...]:
        """The sequences that it is made of."""
        return (self.tokens,)

    def of(self, parts: Sequence[Tokens]) -> Self:
        """Return the same row of other parts."""
        (tokens,) = parts
        return replace(self, tokens=tokens)


@dataclass(frozen=True, slots=True)
class Judged(_Alone):
    """An answer with what somebody thought of it."""

    good: bool


@dataclass(frozen=True, slots=True)
class Prompted(_Alone):
    """A prompt that the model answers itself, no token of which counts, with what its answers are rewarded by."""

    columns: Mapping[str, str]
    """The row's columns that rewards read."""


TokenRow: TypeAlias = Tokens | Pair | Judged | Prompted
"""A rendered row, by objective: sft's, that of dpo, orpo and reward, kto's, rlhf's."""
