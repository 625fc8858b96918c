"""The first stage: everything that can be found wrong without torch, and the files of the run."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

from lorikeet_api.contract import RunContract, RunRecord, SourceDigest, Use, data_sources, data_uses, read_as
from lorikeet_api.training import DataSource
from lorikeet_run import log
from lorikeet_run.data import Source
from lorikeet_run.examples import Instances
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.mixture import check_split, split
from lorikeet_run.output import adopt_or_take
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_run.reward_models import fetch_reward_models
from lorikeet_run.rewards import rules
from lorikeet_run.start import fetch_start
from lorikeet_storage import Checkpoints, fetch_data, fetch_model
from lorikeet_storage.errors import Conflict, Invalid, Missing
from lorikeet_trainer.state import COURSE, Course, Layout, Prepared, StoredCheckpoint


def prepare(contract: RunContract, layout: Layout) -> RunRecord | None:
    """Adopt a finished run, or fetch and check data and model. Raises RunError and StorageError."""
    if (finished := adopt_or_take(contract, FETCH_SECONDS)) is not None:
        return finished
    began = monotonic()
    rules(contract.objective)
    sources = zip(data_sources(contract), data_uses(contract), strict=True)
    data = [_fetch(source, index, read_as(contract, use), layout) for index, (source, use) in enumerate(sources)]
    if contract.dataset.eval_fraction is not None:
        trained = [index for index, use in enumerate(data_uses(contract)) if use == "training"]
        check_split(example for index in trained for example in _source(data[index], index, contract, layout))
    with log.timed("fetch", what="model", uri=contract.model.uri) as told:
        pin = contract.pins[0] if contract.pins else None
        model = patiently(lambda: fetch_model(contract.model, layout.model, contract.storage, pin), FETCH_SECONDS)
        told["bytes"] = sum(file.size for file in model.digest.files)
    start = None
    if contract.start is not None:
        start = fetch_start(contract, contract.start, model.digest, layout.start, FETCH_SECONDS)
    rewards = fetch_reward_models(contract, model.digest, layout.model, layout.rewards, FETCH_SECONDS)
    prepared = Prepared(model=model.digest, data=data, start=start, rewards=rewards)
    step = _resume(contract, prepared.basis(contract.date), layout)
    fitting = None if step is None else Course.read(layout.resume / COURSE).micro_batch_size
    seconds = round(monotonic() - began, 3)
    prepared.model_copy(update={"checkpoint": step, "fitting": fitting, "seconds": seconds}).write(layout.prepared)
    return None


def _resume(contract: RunContract, basis: str, layout: Layout) -> int | None:
    """Fetch the newest checkpoint that an earlier attempt has left; return its step, or None if there is none."""
    checkpoints = Checkpoints(contract, basis)
    for stored in patiently(lambda: list(checkpoints.newest()), FETCH_SECONDS):
        step = stored.checkpoint.step
        shutil.rmtree(layout.resume, ignore_errors=True)
        try:
            with log.timed("resume", step=step, uri=str(stored.location)):
                patiently(partial(checkpoints.fetch, stored, layout.resume), FETCH_SECONDS)
        except (Conflict, Invalid, Missing) as error:
            # Damaged, or removed meanwhile by another pod of the run.
            log.event("checkpoint_damaged", step=step, message=str(error))
            continue
        StoredCheckpoint(step=step).write(layout.stored)
        return step
    return None


def _fetch(source: DataSource, index: int, contract: RunContract, layout: Layout) -> SourceDigest:
    """Fetch one source and look at every row of it, one at a time: it may be larger than memory."""
    pin = contract.pins[index + 1] if contract.pins else None
    with log.timed("fetch", what="data", uri=source.uri) as told:
        fetched = patiently(lambda: fetch_data(source, layout.source(index), contract.storage, pin), FETCH_SECONDS)
        told["bytes"] = sum(file.size for file in fetched.digest.files)
    with log.timed("check", what="data", uri=source.uri) as told:
        told["rows"] = rows = sum(1 for _ in _source(fetched.digest, index, contract, layout))
    return fetched.digest.model_copy(update={"rows": rows})


@dataclass(frozen=True)
class Data:
    """The run's examples, which are read whenever they are gone through."""

    train: Sequence[Instances]
    """Those of each training source."""
    held_out: Instances
    test: Instances
    general: Instances

    @property
    def by_use(self) -> list[tuple[Use, Instances]]:
        """All of them, by what they are for; what is not there is left out."""
        others: list[tuple[Use, Instances]] = [
            ("evaluation", self.held_out),
            ("test", self.test),
            ("general", self.general),
        ]
        trained: list[tuple[Use, Instances]] = [("training", rows) for rows in self.train]
        return [*trained, *((use, rows) for use, rows in others if rows)]


def read_data(contract: RunContract, layout: Layout, digests: list[SourceDigest]) -> Data:
    """Return the run's examples, from the files in the work folder."""
    uses = data_uses(contract)
    sources = [
        _source(digest, index, read_as(contract, use), layout)
        for index, (use, digest) in enumerate(zip(uses, digests, strict=True))
    ]
    train: Sequence[Instances] = [source for use, source in zip(uses, sources, strict=True) if use == "training"]
    by_use: dict[Use, Instances] = dict(zip(uses, sources, strict=True))
    held_out = by_use.get("evaluation", [])
    if contract.dataset.eval_fraction is not None:
        parts = split(train, contract.dataset.eval_fraction, Hyperparameters.of(contract).seed)
        train, held_out = parts.train, parts.held_out
    return Data(train, held_out, by_use.get("test", []), by_use.get("general", []))


def _source(digest: SourceDigest, index: int, contract: RunContract, layout: Layout) -> Source:
    folder = layout.source(index)
    return Source(
        [(folder / file.path, file.path) for file in digest.files],
        contract.dataset,
        contract.objective.name,
        contract.objective.columns,
        digest.rows or 0,
    )
