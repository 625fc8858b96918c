"""Rows as objectives take them: one text or conversation, or two that belong together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from lorikeet_api.training import TrainOn
from lorikeet_run.conversation import Message
from lorikeet_run.tokens import Judged, Pair, Prompted, TokenRow, Tokens


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a conversation, or a plain text."""

    where: str
    """File and line or row."""
    train_on: TrainOn
    """The tokens that the loss counts."""
    messages: tuple[Message, ...] = ()
    """The conversation; empty for a plain text."""
    text: str = ""
    """The plain text."""
    tools: str = ""
    """The tools that a conversation may call, as JSON; empty where there are none."""
    asks: bool = False
    """Whether it ends where an answer is to be written; no token of it counts."""

    @property
    def content(self) -> tuple[object, ...]:
        """What it teaches: rows with equal contents are not parted by a split."""
        return self.messages, self.text, self.tools

    @property
    def parts(self) -> "tuple[Example, ...]":
        """What is rendered of it."""
        return (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """What a reader calls the parts, behind the place."""
        return ("",)

    def assemble(self, parts: Sequence[Tokens]) -> TokenRow:
        """Return the row that its rendered parts make."""
        (tokens,) = parts
        return tokens


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, of which one is better."""

    chosen: Example
    rejected: Example

    @property
    def where(self) -> str:
        """File and line or row."""
        return self.chosen.where

    @property
    def content(self) -> tuple[object, ...]:
        """What it asks: rows that ask the same are not parted by a split."""
        return self.chosen.messages[:-1]

    @property
    def parts(self) -> tuple[Example, ...]:
        """What is rendered of it."""
        return (self.chosen, self.rejected)

    @property
    def names(self) -> tuple[str, ...]:
        """What a reader calls the parts, behind the place."""
        return (", chosen", ", rejected")

    def assemble(self, parts: Sequence[Tokens]) -> TokenRow | None:
        """Return the row that its rendered parts make; None where the two answers have become the same."""
        chosen, rejected = parts
        if np.array_equal(chosen.input_ids, rejected.input_ids):
            return None
        # A token across the border of the prompt may be another one in each of the two.
        begin = min(chosen.answer, rejected.answer)
        return Pair(chosen.answered_from(begin), rejected.answered_from(begin))


@dataclass(frozen=True, slots=True)
class Feedback:
    """An answer that somebody called good or bad."""

    answer: Example
    good: bool

    @property
    def where(self) -> str:
        """File and line or row."""
        return self.answer.where

    @property
    def content(self) -> tuple[object, ...]:
        """What it asks: rows that ask the same are not parted by a split."""
        return self.answer.messages[:-1]

    @property
    def parts(self) -> tuple[Example, ...]:
        """What is rendered of it."""
        return (self.answer,)

    @property
    def names(self) -> tuple[str, ...]:
        """What a reader calls the parts, behind the place."""
        return (", good" if self.good else ", bad",)

    def assemble(self, parts: Sequence[Tokens]) -> TokenRow:
        """Return the row that its rendered parts make."""
        (tokens,) = parts
        return Judged(tokens.answered_from(tokens.answer), self.good)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that the model answers itself, with what its answers are rewarded by."""

    asked: Example
    columns: Mapping[str, str]
    """The row's columns that rewards read."""

    @property
    def where(self) -> str:
        """File and line or row."""
        return self.asked.where

    @property
    def content(self) -> tuple[object, ...]:
        """What it asks: rows that ask the same are not parted by a split."""
        return self.asked.messages

    @property
    def parts(self) -> tuple[Example, ...]:
        """What is rendered of it."""
        return (self.asked,)

    @property
    def names(self) -> tuple[str, ...]:
        """What a reader calls the parts, behind the place."""
        return ("",)

    def assemble(self, parts: Sequence[Tokens]) -> TokenRow:
        """Return the row that its rendered parts make."""
        (tokens,) = parts
        return Prompted(tokens, self.columns)


Instance: TypeAlias = Example | Preference | Feedback | Prompt
"""What a row of the data is, by objective: sft's, that of dpo, orpo and reward, kto's, rlhf's."""


class Instances(Protocol):
    """Rows that can be gone through any number of times; many are read anew each time, as they may not fit into memory.

    A list of them is one.
    """

    def __iter__(self) -> Iterator[Instance]:
        """Return the rows in order."""

    def __len__(self) -> int:
        """Return how many there are."""
