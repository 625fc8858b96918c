"""Before a GPU is asked for: is everything there, can it be read, does it fit together, is the result there already?"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Final

from lorikeet_api.contract import RunContract, RunRecord, data_sources, data_uses, read_as
from lorikeet_api.training import Dataset
from lorikeet_run import log
from lorikeet_run.data import read_source
from lorikeet_run.examples import Instance
from lorikeet_run.mixture import check_split
from lorikeet_run.output import adopt_or_take
from lorikeet_run.patience import patiently
from lorikeet_run.rendered import Counts, check_left, check_stops
from lorikeet_run.reward_models import check_reward_models
from lorikeet_run.rewards import rules
from lorikeet_run.start import check_start
from lorikeet_run.templates import TEMPLATES
from lorikeet_storage import Survey, fetch_description, survey_data, survey_model

PATIENCE: Final = 3.0
"""Seconds in which a store may come back; after that the pod says so and is made again."""
MIB: Final = 1 << 20
WHOLE: Final = 16 * MIB
"""Files up to this size are read whole."""
HEAD: Final = MIB
"""What is read of larger JSON lines."""
ROWS: Final = 200
"""Rows of each source that are rendered with the base model's template, before all of them are."""
DATA: Final = 1024 * MIB
"""Bytes of all data of which this pod makes tokens: its scratch volume holds them."""
SPLIT: Final = 256 * MIB
"""The same where a part is held out: the contents of all rows are counted in memory for that."""
LARGEST: Final = {".jsonl": DATA, ".parquet": 64 * MIB, ".json": WHOLE, ".csv": WHOLE}
"""Bytes of a file of which it does: JSON lines are read row by row, Parquet is packed, the others are held whole."""


@dataclass(frozen=True)
class Sample:
    """What was read of one source."""

    examples: list[Instance]
    """The first ones."""
    rows: int
    """How many were parsed."""
    whole: bool
    """Whether these rows are all that the source has."""
    differs: bool
    """Whether two of the rows are different examples."""

    @property
    def is_all(self) -> bool:
        """Whether `examples` are all that the source has."""
        return self.whole and len(self.examples) == self.rows


def preflight(contract: RunContract, folder: Path) -> RunRecord:
    """Check the run and return the record that lets it begin, or that of its finished result.

    Raises RunError and StorageError, as the trainer would.
    """
    if (finished := adopt_or_take(contract, PATIENCE)) is not None:
        return finished
    rules(contract.objective)
    with log.timed("check", what="model", uri=contract.model.uri):
        model = patiently(lambda: survey_model(contract.model, contract.storage), PATIENCE)
    if contract.start is not None:
        check_start(contract, contract.start, model, folder / "start", PATIENCE)
    surveys, samples = list[Survey](), list[Sample]()
    for index, (source, use) in enumerate(zip(data_sources(contract), data_uses(contract), strict=True)):
        with log.timed("check", what="data", uri=source.uri) as told:
            surveys.append(patiently(partial(survey_data, source, contract.storage), PATIENCE))
            read = partial(sample, surveys[-1], read_as(contract, use), folder / str(index))
            samples.append(patiently(read, PATIENCE))
            told["rows"] = samples[-1].rows
    trained = [one for use, one in zip(data_uses(contract), samples, strict=True) if use == "training"]
    if contract.dataset.eval_fraction is not None and all(one.whole and not one.differs for one in trained):
        check_split(one.examples[0] for one in trained)
    described = patiently(lambda: fetch_description(model, folder / "model"), PATIENCE)
    template = _render(contract, samples, folder / "model")
    rewards = check_reward_models(contract, folder / "model", folder / "rewards", PATIENCE)
    pins = [survey.pin for survey in surveys]
    if (why := too_large(surveys, contract.dataset)) is None:
        from lorikeet_agent.tokenise import tokenise

        made = tokenise(contract, pins, folder / "model", described, folder)
        what = f"{sum(made.rows)} rows of data (every row), rendered with {TEMPLATES[made.template.source]}"
    else:
        extent = "every row" if all(one.whole for one in samples) else "a sample"
        what = f"{sum(one.rows for one in samples)} rows of data ({extent}), rendered with {template}"
        what += f"; the trainer makes all tokens, since {why}"
    return RunRecord(reason="Checked", message=f"checked: model, output and {what}", pins=[model.pin, *pins, *rewards])


def too_large(surveys: Sequence[Survey], dataset: Dataset) -> str | None:
    """Return why a run's tokens are left to the trainer, or None where its data is small enough for this pod."""
    most = DATA if dataset.eval_fraction is None else min(DATA, SPLIT)
    if (size := sum(survey.size for survey in surveys)) > most:
        return f"the data has {size >> 20} MiB, more than {most >> 20}"
    for entry in (entry for survey in surveys for entry in survey.entries):
        most = LARGEST[PurePath(entry.name).suffix]
        if entry.size > most:
            return f"{entry.name} has {entry.size >> 20} MiB, more than {most >> 20}"
    return None


def sample(survey: Survey, contract: RunContract, folder: Path) -> Sample:
    """Read a source's files as far as seconds allow: small ones whole, of large JSON lines the head, others not."""
    folder.mkdir(parents=True, exist_ok=True)
    small, size = [], 0
    for entry in survey.entries:
        if entry.size <= WHOLE and size + entry.size <= 2 * WHOLE:
            small.append(entry)
            size += entry.size
    survey.origin.fetch(small, folder)
    names = [entry.name for entry in small]
    first = survey.entries[0]
    if first.size > WHOLE and first.name.endswith(".jsonl"):
        head = survey.origin.head(first, HEAD) or b""
        if end := head.rfind(b"\n") + 1:  # a row may be longer than the head
            path = folder / first.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(head[:end])
            names.insert(0, first.name)
    kept: list[Instance] = []
    rows, differs = 0, False
    files, objective = [(folder / name, name) for name in names], contract.objective
    for example in read_source(files, contract.dataset, objective.name, objective.columns):
        rows += 1
        if len(kept) < ROWS:
            kept.append(example)
        differs = differs or example.content != kept[0].content
    shutil.rmtree(folder)
    return Sample(kept, rows, len(small) == len(survey.entries), differs)


def _render(contract: RunContract, samples: list[Sample], model: Path) -> str:
    """Turn the samples into tokens as the trainer will; return what template that took."""
    # Here, since it takes a second: what is wrong with a URI is said before.
    from lorikeet_run.render import renderers
    from lorikeet_run.tokenizer import load_tokenizer

    with log.timed("check", what="template"):
        uses = data_uses(contract)
        sources = [(use, one.examples) for use, one in zip(uses, samples, strict=True)]
        template, by = renderers(contract, model, load_tokenizer(model), sources)
        counts = [by[use].render(examples).counts for use, examples in sources]
        learnt = (one for use, one in zip(uses, counts, strict=True) if use != "general")
        check_stops(sum(learnt, Counts()), contract.dataset.overlong)
    for what in dict.fromkeys(uses):
        of = [number for number, use in enumerate(uses) if use == what]
        if all(samples[number].is_all for number in of):
            check_left(what, [counts[number] for number in of], contract.dataset.max_length)
    return TEMPLATES[template.source]
