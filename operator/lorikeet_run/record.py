"""The two ends of a run: the contract that it is given, and the record that it leaves."""

from pathlib import Path

from pydantic import ValidationError

from lorikeet_api.base import first_error
from lorikeet_api.contract import RunContract, RunRecord
from lorikeet_run import log
from lorikeet_run.errors import RunError


def read_contract(path: Path) -> RunContract:
    """Return the contract in a file. Raises RunError (InvalidContract)."""
    try:
        return RunContract.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError("InvalidContract", f"the contract cannot be read: {error}") from error
    except ValidationError as error:
        raise RunError(
            "InvalidContract",
            f"{path}: {first_error(error)}: the operator and the image of this pod must be of the same release",
        ) from error


def write_record(record: RunRecord, path: Path) -> None:
    """Write the termination message; without a place for it (outside a pod) the log has it all the same."""
    try:
        path.write_text(record.to_message(), encoding="utf-8")
    except OSError as error:
        log.event("record", message=f"the termination message could not be written: {error}")
