"""Before a GPU is asked for: is everything there, can it be read, does it fit together, is the result there already?"""

from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from lorikeet_api.contract import RunContract, RunRecord, data_sources
from lorikeet_run import log
from lorikeet_run.data import Example, read_source
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.mixture import check_split
from lorikeet_run.patience import patiently
from lorikeet_run.record import adopted
from lorikeet_storage import Survey, check_free, fetch_description, find_manifest, survey_data, survey_model

PATIENCE: Final = 3.0
"""Seconds in which a store may come back; after that the pod says so and is made again."""
MIB: Final = 1 << 20
WHOLE: Final = 16 * MIB
"""Files up to this size are read whole."""
HEAD: Final = MIB
"""What is read of larger JSON lines."""
ROWS: Final = 200
"""Rows of each source that are rendered with the base model's template."""


@dataclass(frozen=True)
class Sample:
    """What was read of one source."""

    examples: list[Example]
    """The first ones."""
    rows: int
    """How many were parsed."""
    whole: bool
    """Whether these are all that the source has."""


def preflight(contract: RunContract, folder: Path) -> RunRecord:
    """Check the run and return the record that lets it begin, or that of its finished result.

    Raises RunError and StorageError, as the trainer would.
    """
    finished = patiently(lambda: find_manifest(contract.output_uri, contract.run_id, contract.storage), PATIENCE)
    if finished is not None:
        return adopted(*finished)
    Hyperparameters.of(contract)  # says so now if the batch cannot be shared out
    with log.timed("check", what="output", uri=contract.output_uri):
        patiently(lambda: check_free(contract), PATIENCE)
    with log.timed("check", what="model", uri=contract.model.uri):
        model = patiently(lambda: survey_model(contract.model, contract.storage), PATIENCE)
    pins, samples = [model.pin], []
    for index, source in enumerate(data_sources(contract)):
        with log.timed("check", what="data", uri=source.uri) as told:
            survey = patiently(partial(survey_data, source, contract.storage), PATIENCE)
            samples.append(patiently(partial(sample, survey, contract, folder / str(index)), PATIENCE))
            told["rows"] = samples[-1].rows
        pins.append(survey.pin)
    if contract.dataset.eval_fraction is not None and all(one.whole for one in samples):
        check_split(example for one in samples for example in one.examples)
    template = _render(contract, model, samples, folder / "model")
    rows = sum(one.rows for one in samples)
    extent = "every row" if all(one.whole for one in samples) else "a sample"
    return RunRecord(
        reason="Checked",
        message=f"checked: model, output and {rows} rows of data ({extent}), rendered with {template}",
        pins=pins,
    )


def sample(survey: Survey, contract: RunContract, folder: Path) -> Sample:
    """Read a source's files as far as seconds allow: small ones whole, of large JSON lines the head, others not."""
    folder.mkdir(parents=True, exist_ok=True)
    files, whole = [], True
    for entry in survey.entries:
        if entry.size <= WHOLE:
            survey.origin.fetch([entry], folder)
        elif entry.name.endswith(".jsonl") and (head := survey.origin.head(entry, HEAD)):
            path = folder / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(head[: head.rfind(b"\n") + 1])
            whole = False
        else:
            whole = False
            continue
        files.append((folder / entry.name, entry.name))
        if sum(path.stat().st_size for path, _ in files) > WHOLE:
            whole = whole and entry == survey.entries[-1]
            break
    examples = read_source(files, contract.dataset)
    first = list(islice(examples, None if whole and contract.dataset.eval_fraction is not None else ROWS))
    return Sample(first, len(first) + sum(1 for _ in examples), whole)


def _render(contract: RunContract, model: Survey, samples: list[Sample], folder: Path) -> str:
    """Turn the samples into tokens as the trainer will; return what template that took."""
    # Here, since it takes a second: what is wrong with a URI is said before.
    from lorikeet_run.render import Renderer, check_stops, choose_template
    from lorikeet_run.tokenizer import load_tokenizer, stop_ids

    patiently(lambda: fetch_description(model, folder), PATIENCE)
    with log.timed("check", what="template"):
        tokenizer = load_tokenizer(folder)
        examples = [one.examples[:ROWS] for one in samples]
        template = choose_template(tokenizer, [example for some in examples for example in some])
        renderer = Renderer(
            tokenizer,
            stop_ids(folder, tokenizer),
            date=contract.date,
            max_length=contract.dataset.max_length,
            overlong=contract.dataset.overlong,
        )
        check_stops([renderer.render(some) for some in examples], contract.dataset.overlong)
    return {"base": "the base model's chat template", "lorikeet": "Lorikeet's template", "none": "no template"}[
        template.source
    ]
