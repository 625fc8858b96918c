"""The last stage: what was trained goes to the output, the manifest last."""

from typing import Literal

from lorikeet_api.contract import Manifest, RunContract, RunRecord, servable
from lorikeet_run import log
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.patience import PUBLISH_SECONDS, patiently
from lorikeet_storage import Checkpoints, StorageError
from lorikeet_storage import publish as publish_files
from lorikeet_trainer.state import Layout, Prepared, Trained
from lorikeet_trainer.summary import write_report


def publish(contract: RunContract, layout: Layout) -> RunRecord:
    """Publish the output folder and return the run's record. Raises StorageError."""
    prepared = Prepared.read(layout.prepared)
    trained = Trained.read(layout.trained)
    draft = manifest(contract, prepared, trained)
    write_report(contract, layout, prepared, trained)
    with log.timed("publish", uri=contract.output_uri) as told:
        published = patiently(lambda: publish_files(layout.output, draft), PUBLISH_SECONDS)
        artifacts = published.artifacts
        told |= {"bytes": artifacts.size_bytes, "revision": artifacts.revision}
    if Hyperparameters.of(contract).checkpoints.after_success == "delete":
        _remove_checkpoints(contract, prepared.basis(contract.date))
    signs = ", ".join(f"{sign.name} from step {sign.step} on" for sign in trained.metrics.signs or [])
    warning = f"; signs that it went wrong: {signs}" if signs else ""
    return RunRecord(
        reason="Published",
        message=f"published {artifacts.uri}, revision {artifacts.revision}{warning}",
        metrics=published.manifest.metrics,
        artifacts=artifacts,
    )


def _remove_checkpoints(contract: RunContract, basis: str) -> None:
    try:
        Checkpoints(contract, basis).remove_all()
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
        contract=contract,
        files=[],
        template=trained.template,
        rank=None if adapter is None else adapter.published_rank,
        servable=servable(contract.method, contract.objective),
        metrics=trained.metrics,
        libraries=trained.libraries,
    )
