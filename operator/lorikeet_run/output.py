"""How a run finds its output: with its result there already, free, or in somebody's way."""

from lorikeet_api.contract import Metrics, RunContract, RunRecord
from lorikeet_run import log
from lorikeet_run.errors import RunError
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.patience import patiently
from lorikeet_storage import check_free, find_published
from lorikeet_storage.publish import Published


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
    _refuse_signs(contract, found)
    return RunRecord(
        reason="Adopted",
        message=f"{found.folder} holds the finished result of the same request; nothing was trained",
        metrics=found.manifest.metrics,
        artifacts=found.artifacts,
    )


def _refuse_signs(contract: RunContract, found: Published) -> None:
    """Raise RunError if a result has a sign that would have ended this request's run: failOn is not in its id.

    Nor is the general set: whether a result has forgotten by another one is not known.
    """
    signs, failing = found.manifest.metrics.signs or [], contract.training.fails_on
    if "Forgetting" in failing and found.manifest.contract.dataset.general != contract.dataset.general:
        raise RunError(
            "OutputConflict",
            f"{contract.output_uri} holds the finished result of the same request, but for its general set, so whether"
            " it has forgotten is not known: give another output.uri, or remove Forgetting from training.signs.failOn",
        )
    for sign in signs:
        if sign.name in failing:
            error = RunError(
                sign.name,
                f"the result of the same request in {found.folder} has the sign {sign.told}. It is not adopted, as"
                f" training.signs.failOn says, and stays as it is: leave {sign.name} out there, in a new job, to adopt"
                " it",
            )
            error.metrics = Metrics(steps=found.manifest.metrics.steps, signs=signs)
            raise error
