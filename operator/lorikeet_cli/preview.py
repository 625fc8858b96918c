"""`lorikeet data preview`: rows as the model will see them, rendered by the run's own code and the base's tokenizer."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lorikeet_api.contract import RunContract, Template, data_sources, data_uses, read_as
from lorikeet_api.training import DataSource
from lorikeet_cli.problem import Problem
from lorikeet_cli.request import NOWHERE, Machine, add_arguments, contract_of, instances_of, the_job
from lorikeet_run.examples import Instance
from lorikeet_run.rendered import Counts, Rendered, check_stops
from lorikeet_run.templates import TEMPLATES
from lorikeet_run.tokens import IGNORED, Tokens
from lorikeet_storage import fetch_data, fetch_description, survey_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorikeet_run.render import Renderer


@dataclass(frozen=True)
class Style:
    """How tokens that are trained on are told from others."""

    before: str
    after: str


COLOURS: Final = Style("\x1b[1;32m", "\x1b[0m")
BRACKETS: Final = Style("[[", "]]")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    data = commands.add_parser("data", help="Look at a FineTuneJob's data.", description="Look at data.")
    does = "Show rows as the model will see them: text, token ids, and which of them are trained on."
    parser = data.add_subparsers(required=True, metavar="COMMAND").add_parser("preview", help=does, description=does)
    add_arguments(parser)
    parser.add_argument("--rows", metavar="N", type=int, default=3, help="rows of each source to show (default: 3)")
    parser.add_argument(
        "--color", action=argparse.BooleanOptionalAction, default=None,
        help="trained tokens in colour, or in [[brackets]]; absent: colour on a terminal",
    )  # fmt: skip
    parser.set_defaults(command=preview)


def preview(given: argparse.Namespace) -> int:
    """Print rows and counts; return 0. Raises Problem, RunError and StorageError, as the run would."""
    if given.rows < 0:
        raise Problem("--rows is the number of rows to show: 0 or more")
    job, profile = the_job(given)
    machine = Machine.of(given)
    contract = contract_of(job, profile, Machine(machine.folders, machine.endpoint, NOWHERE))
    coloured = sys.stdout.isatty() if given.color is None else given.color
    with tempfile.TemporaryDirectory() as folder:
        for line in show(contract, Path(folder), given.rows, COLOURS if coloured else BRACKETS):
            print(line)
    return 0


def show(contract: RunContract, folder: Path, rows: int, style: Style) -> Iterator[str]:
    """Yield the lines of a preview; what a run would refuse is raised after what can be shown."""
    sources = [
        (use, _read(source, read_as(contract, use), folder / str(index)))
        for index, (source, use) in enumerate(zip(data_sources(contract), data_uses(contract), strict=True))
    ]
    fetch_description(survey_model(contract.model, contract.storage), folder / "model")
    # Here, since transformers takes a second: what is wrong with the data is said before.
    from lorikeet_run.render import renderers
    from lorikeet_run.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "model")
    template, by = renderers(contract, folder / "model", tokenizer, sources)
    learnt = Counts()
    for source, (use, examples) in zip(data_sources(contract), sources, strict=True):
        yield f"=== {source.uri}"
        for example in examples[:rows]:
            yield from _row(example, by[use], tokenizer, style)
        rendered = by[use].render(examples)
        yield _counts(len(examples), rendered)
        if use != "general":
            learnt += rendered.counts
    yield f"template: {_template(template)}"
    percent = check_stops(learnt, contract.dataset.overlong)
    if percent is not None:
        yield f"answers that end with a stop token: {percent:.4g} %"


def _read(source: DataSource, contract: RunContract, folder: Path) -> list[Instance]:
    return list(instances_of(fetch_data(source, folder, contract.storage), contract))


def _row(example: Instance, renderer: "Renderer", tokenizer: "PreTrainedTokenizerBase", style: Style) -> Iterator[str]:
    kept = renderer.render([example]).rows
    if not kept:
        yield f"--- {example.where}: dropped, dataset.maxLength leaves no whole one or no token to train on"
        return
    for name, tokens in zip(example.names, kept[0].parts, strict=True):
        yield f"--- {example.where}{name}: {len(tokens.input_ids)} tokens, {tokens.trained} trained on"
        yield from _tokens(tokens, tokenizer, style)


def _tokens(tokens: Tokens, tokenizer: "PreTrainedTokenizerBase", style: Style) -> Iterator[str]:
    """Yield a sequence as text, then as ids."""
    runs = list(_runs(tokens))
    marked = ((str(tokenizer.decode(ids)), trained) for ids, trained in runs)
    yield "".join(f"{style.before}{text}{style.after}" if trained else text for text, trained in marked)
    listed = ((" ".join(map(str, ids)), trained) for ids, trained in runs)
    yield "ids: " + " ".join(f"{style.before}{ids}{style.after}" if trained else ids for ids, trained in listed)


def _runs(tokens: Tokens) -> Iterator[tuple[list[int], bool]]:
    """Yield the ids in runs of those that are trained on, and those that are not."""
    pairs = zip(tokens.input_ids.tolist(), (tokens.labels != IGNORED).tolist(), strict=True)
    for trained, run in groupby(pairs, key=lambda pair: pair[1]):
        yield [token for token, _ in run], trained


def _counts(read: int, rendered: Rendered) -> str:
    lengths = sorted(len(part.input_ids) for row in rendered.rows for part in row.parts)
    told = f"{read} rows, {len(rendered.rows)} kept, {rendered.dropped} dropped"
    if not lengths:
        return told
    trained = sum(row.trained for row in rendered.rows)
    return (
        f"{told}; {sum(lengths)} tokens, {trained} of them trained on;"
        f" a row has {lengths[0]} to {lengths[-1]}, half of them {lengths[len(lengths) // 2]} or less"
    )


def _template(template: Template) -> str:
    text = TEMPLATES[template.source]
    return text if template.sha256 is None else f"{text} (sha256 {template.sha256[:12]})"
