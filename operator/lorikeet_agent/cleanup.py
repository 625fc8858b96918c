"""Deletes what a run has written, when its FineTuneJob goes and asks for that."""

from pathlib import Path

from lorikeet_api.contract import RunContract, RunRecord
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_storage import remove_run


def cleanup(contract: RunContract, folder: Path) -> RunRecord:
    """Delete the run's folder if it is this job's; return what was done. Raises StorageError."""
    del folder
    return RunRecord(reason="Deleted", message=patiently(lambda: remove_run(contract), FETCH_SECONDS))
