"""Reads how a run ended whose record went with its node: what it published says so."""

from pathlib import Path

from lorikeet_api.contract import RunContract, RunRecord
from lorikeet_run.errors import RunError
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_storage import find_published


def recover(contract: RunContract, folder: Path) -> RunRecord:
    """Return the record of what the run has published. Raises RunError and StorageError."""
    del folder
    found = patiently(lambda: find_published(contract.output_uri, contract.run_id, contract.storage), FETCH_SECONDS)
    if found is None:
        raise RunError(
            "OutputConflict",
            f"the run ended and its record is lost, and {contract.output_uri}/{contract.run_id} holds no manifest:"
            " create a new FineTuneJob to train again",
        )
    artifacts = found.artifacts
    return RunRecord(
        reason="Published",
        message=f"published {artifacts.uri}, revision {artifacts.revision} (its record was lost and read from there)",
        metrics=found.manifest.metrics,
        artifacts=artifacts,
    )
