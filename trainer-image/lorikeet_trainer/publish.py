"""The last stage: what was trained goes to the output, the manifest last."""

from typing import Literal

from lorikeet_api.contract import Manifest, Metrics, RunContract, RunRecord, servable
from lorikeet_run import log
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.patience import PUBLISH_SECONDS, patiently
from lorikeet_storage import Checkpoints, StorageError
from lorikeet_storage import publish as publish_files
from lorikeet_storage.checkpoints import BEST
from lorikeet_trainer.state import Layout, Prepared, Trained
from lorikeet_trainer.summary import write_report


def publish(contract: RunContract, layout: Layout) -> RunRecord:
    """Publish the output folder and return the run's record. Raises StorageError."""
    prepared = Prepared.read(layout.prepared)
    trained = Trained.read(layout.trained)
    draft = manifest(contract, prepared, trained)
    write_report(contract, layout, prepared, trained)
    after_success, basis = Hyperparameters.of(contract).checkpoints.after_success, prepared.basis(contract.date)
    # Before the manifest: a run that has one is not made again.
    keeps_best = after_success == "keepBest" and layout.best.exists()
    if keeps_best:
        patiently(lambda: Checkpoints(contract, basis).keep_best(layout.best), PUBLISH_SECONDS)
    with log.timed("publish", uri=contract.output_uri) as told:
        published = patiently(lambda: publish_files(layout.output, draft), PUBLISH_SECONDS)
        artifacts = published.artifacts
        told |= {"bytes": artifacts.size_bytes, "revision": artifacts.revision}
    if after_success != "keep":
        _remove_checkpoints(contract, basis, BEST if keeps_best else None)
    metrics = published.manifest.metrics
    return RunRecord(
        reason="Published",
        message=f"published {artifacts.uri}, revision {artifacts.revision}{_end_of(metrics)}{_signs_of(metrics)}",
        metrics=metrics,
        artifacts=artifacts,
    )


def _end_of(metrics: Metrics) -> str:
    """Return how a run ended before all its steps were made, if it did."""
    if metrics.planned_steps is None:
        return ""
    made, step = f"{metrics.steps} of {metrics.planned_steps}", metrics.best_step
    best = "" if step is None else f", the lowest ({metrics.best_eval_loss:g}) after step {step},"
    return f"; it ended early, after {made} steps: the loss on the held-out examples{best} fell no longer"


def _signs_of(metrics: Metrics) -> str:
    signs = ", ".join(f"{sign.name} from step {sign.step} on" for sign in metrics.signs or [])
    return f"; signs that it went wrong: {signs}" if signs else ""


def _remove_checkpoints(contract: RunContract, basis: str, but: str | None) -> None:
    try:
        Checkpoints(contract, basis).remove_all(but)
    except StorageError as error:
        # No right to delete, say: the run is published all the same.
        log.event("checkpoints_left", message=str(error))


def _kind(contract: RunContract) -> Literal["adapter", "model", "reward"]:
    if contract.objective.reward is not None:
        return "reward"
    return "model" if contract.method.full is not None else "adapter"


def manifest(contract: RunContract, prepared: Prepared, trained: Trained) -> Manifest:
    """Return the run's manifest; storage fills in the files."""
    adapter = contract.method.adapter
    return Manifest(
        kind=_kind(contract),
        run_id=contract.run_id,
        base_model=prepared.model,
        data=prepared.data,
        rewards=prepared.rewards or None,
        contract=contract,
        files=[],
        template=trained.template,
        rank=None if adapter is None else adapter.published_rank,
        servable=servable(contract.method, contract.objective),
        metrics=trained.metrics,
        libraries=trained.libraries,
    )
