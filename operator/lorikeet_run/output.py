"""How a run finds its output: with its result there already, free, or in somebody's way."""

from lorikeet_api.contract import Manifest, RunContract, RunRecord
from lorikeet_run import log
from lorikeet_run.errors import RunError, failed_by
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.patience import patiently
from lorikeet_storage import check_free, find_published


def adopt_or_take(contract: RunContract, seconds: float) -> RunRecord | None:
    """Return the end of a run whose result is there already, or take its folder and return None.

    A store that is away is waited for, so many `seconds`. Raises RunError and StorageError.
    """
    found = patiently(lambda: find_published(contract.output_uri, contract.run_id, contract.storage), seconds)
    if found is None:
        Hyperparameters.of(contract)  # says so now if the batch cannot be shared out
        with log.timed("check", what="output", uri=contract.output_uri):
            patiently(lambda: check_free(contract), seconds)
        return None
    _refuse_signs(contract, found.manifest)
    return RunRecord(
        reason="Adopted",
        message=f"{found.folder} holds the finished result of the same request; nothing was trained",
        metrics=found.manifest.metrics,
        artifacts=found.artifacts,
    )


def _refuse_signs(contract: RunContract, found: Manifest) -> None:
    """Raise what the run would have ended with if it had been this request's: what signs mean is not in its id.

    Nor is the general set: by another one it is not known.
    """
    metrics = found.metrics
    signs, failing = metrics.signs or [], contract.training.signs.fail_on if contract.training.signs is not None else []
    if "Forgetting" in failing and found.contract.dataset.general != contract.dataset.general:
        raise RunError(
            "OutputConflict",
            f"{contract.output_uri} holds the finished result of the same request, but for its general set, so whether"
            " it has forgotten is not known: give another output.uri, or remove Forgetting from training.signs.failOn",
        )
    for sign in signs:
        if sign.name in failing:
            raise failed_by(sign, signs, metrics.steps or sign.step)
