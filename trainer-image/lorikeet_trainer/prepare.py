"""The first stage: everything that can be found wrong without torch, and the files of the run."""

import shutil
from functools import partial
from time import monotonic

from lorikeet_api.contract import RunContract, RunRecord
from lorikeet_run import log, tokenised
from lorikeet_run.output import adopt_or_take
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_run.reward_models import fetch_reward_models
from lorikeet_run.rewards import rules
from lorikeet_run.sources import check_sources, fetch_sources
from lorikeet_run.start import fetch_start
from lorikeet_storage import Checkpoints, TokenSets, fetch_model
from lorikeet_storage.errors import Conflict, Invalid, Missing
from lorikeet_trainer.state import COURSE, Course, Layout, Prepared, StoredCheckpoint


def prepare(contract: RunContract, layout: Layout) -> RunRecord | None:
    """Adopt a finished run, or fetch and check data and model. Raises RunError and StorageError."""
    if (finished := adopt_or_take(contract, FETCH_SECONDS)) is not None:
        return finished
    began = monotonic()
    rules(contract.objective)
    sets = TokenSets(contract)
    is_tokenised = patiently(sets.is_any, FETCH_SECONDS)
    data = fetch_sources(contract, layout.data, contract.pins[1:] if contract.pins else None)
    if not is_tokenised:  # else whoever wrote it has looked at every row
        data = check_sources(contract, layout.data, data)
    with log.timed("fetch", what="model", uri=contract.model.uri) as told:
        pin = contract.pins[0] if contract.pins else None
        model = patiently(lambda: fetch_model(contract.model, layout.model, contract.storage, pin), FETCH_SECONDS)
        told["bytes"] = sum(file.size for file in model.digest.files)
    index = None
    if is_tokenised:
        index = tokenised.fetch(sets, tokenised.address(contract, data, model.digest.files), layout.tokens)
        data = check_sources(contract, layout.data, data) if index is None else index.counted(data)
    start = None
    if contract.start is not None:
        start = fetch_start(contract, contract.start, model.digest, layout.start, FETCH_SECONDS)
    rewards = fetch_reward_models(contract, model.digest, layout.model, layout.rewards, FETCH_SECONDS)
    prepared = Prepared(model=model.digest, data=data, start=start, rewards=rewards, is_tokenised=index is not None)
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
