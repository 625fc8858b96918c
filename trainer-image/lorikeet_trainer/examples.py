"""The data of a run as training sees it."""

from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from lorikeet_api.contract import Template
from lorikeet_run import log, tokenised
from lorikeet_run.mixture import mix
from lorikeet_run.render import OWN_TEMPLATE, render_data
from lorikeet_run.rendered import Rendered, RenderedData, check
from lorikeet_run.report import DataProfile
from lorikeet_run.rows import Epoch, Rows
from lorikeet_run.sources import read_data
from lorikeet_run.tokenizer import limits
from lorikeet_run.tokens import TokenRow, Tokens
from lorikeet_trainer.profile import profile
from lorikeet_trainer.session import Session


@dataclass(frozen=True)
class Examples:
    """The run's data as tokens."""

    train: Epoch[TokenRow]
    held_out: Rows[TokenRow]
    test: Rows[TokenRow]
    general: Rows[Tokens]
    template: Template
    dropped: int
    stop_percent: float | None
    profile: DataProfile


def render(session: Session, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Return the run's data as tokens. Raises RunError."""
    contract = session.contract
    made = _tokenised(session, tokenizer)
    positions, vocabulary = limits(session.layout.model)
    stop_percent = check(contract, made.counts, positions, vocabulary)
    rendered = made.of("training")
    held, judging, general = (next(iter(made.of(use)), Rendered()) for use in ("evaluation", "test", "general"))
    dropped = sum(one.dropped for _, one in made.by_use)
    chosen = mix([len(one.rows) for one in rendered], contract.dataset.weights, session.hyper.seed)
    log.event(
        "examples",
        train=len(chosen),
        held_out=len(held.rows),
        test=len(judging.rows),
        general=len(general.rows),
        dropped=dropped,
        template=made.template.source,
        stop_token_percent=stop_percent,
    )
    return Examples(
        Epoch.of([one.rows for one in rendered], chosen),
        held.rows,
        judging.rows,
        cast("Rows[Tokens]", general.rows),
        made.template,
        dropped,
        stop_percent,
        profile(contract, session.layout, session.prepared.data, rendered, held, judging, general),
    )


def _tokenised(session: Session, tokenizer: PreTrainedTokenizerBase) -> RenderedData:
    """Return the run's rows as preflight has left them, or rendered here; the tokenizer has the run's template then."""
    contract, layout = session.contract, session.layout
    if not session.prepared.is_tokenised:
        return render_data(contract, layout.model, tokenizer, read_data(contract, layout.data, session.prepared.data))
    made = tokenised.read(layout.tokens)
    if made.template.source == "lorikeet":
        tokenizer.chat_template = OWN_TEMPLATE
    return made
