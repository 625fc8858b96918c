"""What became of rows that were rendered, and whether a run can begin with it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from lorikeet_api.contract import RunContract, Template, Use
from lorikeet_api.training import Overlong
from lorikeet_run.errors import RunError
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.mixture import check_weights
from lorikeet_run.rows import Rows
from lorikeet_run.tokens import TokenRow

STOPLESS_PERCENT: Final = 5.0
"""More rows than this without a stop token at the end of the answer, and the run is refused."""


@dataclass(frozen=True)
class Counts:
    """What can be said of rendered rows without them."""

    kept: int = 0
    """Rows that are left."""
    dropped: int = 0
    """Rows left out: too long, or a pair that maxLength or the template has made the same."""
    answers: int = 0
    """Kept conversations that end in an answer."""
    stopped: int = 0
    """Those of them whose last trained token is a stop token."""
    longest: int = 0
    """Tokens of the longest row."""
    largest: int = 0
    """The largest token id."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.kept + other.kept,
            self.dropped + other.dropped,
            self.answers + other.answers,
            self.stopped + other.stopped,
            max(self.longest, other.longest),
            max(self.largest, other.largest),
        )

    @property
    def stop_percent(self) -> float | None:
        """Share of the answers that end with a stop token, in percent; None without answers."""
        return 100.0 * self.stopped / self.answers if self.answers else None


@dataclass
class Rendered:
    """The rendered rows of one source, and what became of the others."""

    rows: Rows[TokenRow] = field(default_factory=Rows)
    dropped: int = 0
    """As `Counts` has it, and the two below."""
    answers: int = 0
    stopped: int = 0

    @property
    def counts(self) -> Counts:
        """What can be said of it without the rows."""
        rows = self.rows
        return Counts(
            kept=len(rows),
            dropped=self.dropped,
            answers=self.answers,
            stopped=self.stopped,
            longest=int(rows.lengths.max(initial=0)),
            largest=int(rows.input_ids.max(initial=0)),
        )


@dataclass(frozen=True)
class RenderedData:
    """All rows of a run, and the chat template that they were rendered with."""

    template: Template
    by_use: Sequence[tuple[Use, Rendered]]
    """As `sources.Data` has them."""

    def of(self, use: Use) -> list[Rendered]:
        """Return those of a use: of each training source, or of none or one of the others."""
        return [one for what, one in self.by_use if what == use]

    @property
    def counts(self) -> list[tuple[Use, Counts]]:
        """What can be said of them without the rows."""
        return [(use, one.counts) for use, one in self.by_use]


def check(
    contract: RunContract, counts: Sequence[tuple[Use, Counts]], positions: int | None, vocabulary: int | None
) -> float | None:
    """Find out whether a run can begin with its rendered rows.

    Args:
        contract: the run.
        counts: of its rows, by what they are for, as `sources.Data.by_use` has them.
        positions: how many the base model knows, where its config says so.
        vocabulary: how many token ids it knows, where its config says so.

    Returns:
        The share of the answers that end with a stop token, in percent; None without answers.

    Raises:
        RunError: DataInvalid, ModelInvalid or MethodNotApplicable.
    """
    for what in dict.fromkeys(use for use, _ in counts):
        check_left(what, [one for use, one in counts if use == what], contract.dataset.max_length)
    kept = [one.kept for use, one in counts if use == "training"]
    check_weights(kept, contract.dataset.weights)
    Hyperparameters.of(contract).steps(sum(kept))
    own = sum((one for use, one in counts if use != "general"), Counts())
    general = sum((one for use, one in counts if use == "general"), Counts())
    rlhf = contract.objective.rlhf
    _check_limits(own, positions, vocabulary, answer=rlhf.max_completion_length if rlhf else 0)
    _check_limits(general, positions, vocabulary, answer=0)
    return check_stops(own, contract.dataset.overlong)


def check_left(what: str, counts: Sequence[Counts], max_length: int) -> None:
    """Find out whether an example is left to train or evaluate on. Raises RunError (DataInvalid)."""
    if counts and not any(one.kept for one in counts):
        dropped = sum(one.dropped for one in counts)
        raise RunError(
            "DataInvalid",
            f"no {what} example is left: of all {dropped} maxLength {max_length} leaves no whole one (overlong drop) or"
            " no token of the answer (overlong truncate): raise maxLength",
        )


def check_stops(counts: Counts, overlong: Overlong) -> float | None:
    """Return the share of answers that end with a stop token, in percent. Raises RunError (ModelInvalid).

    A model trained on answers without one never stops generating. Truncated answers lack it by the user's own
    choice, so there the share is only reported; plain texts have no answers.
    """
    percent = counts.stop_percent
    if percent is not None and percent < 100 - STOPLESS_PERCENT and overlong != "truncate":
        raise RunError(
            "ModelInvalid",
            f"{100 - percent:.1f} % of the answers end without a stop token, so the model would not learn to stop:"
            " name the token that ends an answer in the base model's chat template as eos_token_id in its"
            " generation_config.json, as engines read it",
        )
    return percent


def _check_limits(counts: Counts, positions: int | None, vocabulary: int | None, answer: int) -> None:
    """Refuse what the base model has no place for: it would end in an error of the device, or train on noise.

    `answer` is how many tokens the model may write to each example.
    """
    longest, largest = counts.longest, counts.largest
    if positions is not None and answer and longest + answer > positions:
        raise RunError(
            "MethodNotApplicable",
            f"a prompt has {longest} tokens, its answers up to {answer}, and the base model {positions} positions:"
            " lower dataset.maxLength or objective.rlhf.maxCompletionLength, until both together fit",
        )
    if positions is not None and longest > positions:
        raise RunError(
            "MethodNotApplicable",
            f"an example has {longest} tokens and the base model {positions} positions: set dataset.maxLength to"
            f" {positions} or less",
        )
    if vocabulary is not None and largest >= vocabulary:
        raise RunError(
            "ModelInvalid",
            f"the tokenizer gives the token id {largest} and the base model knows {vocabulary} ids: tokenizer and model"
            " do not belong together",
        )
