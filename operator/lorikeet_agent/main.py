"""`lorikeet-agent TASK`: the contract is a file, the record goes into the termination message."""

import argparse
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, get_args

from lorikeet_api.contract import CONTRACT_PATH, EXIT_DONE, TERMINATION_PATH, RunContract, RunRecord
from lorikeet_api.names import Task
from lorikeet_run import log
from lorikeet_run.errors import explain
from lorikeet_run.record import read_contract, write_record

Work = Callable[[RunContract, Path], RunRecord]
"""A task: gets the contract and an empty folder, returns the record."""


def _preflight() -> Work:
    from lorikeet_agent.preflight import preflight

    return preflight


def _recover() -> Work:
    from lorikeet_agent.recover import recover

    return recover


def _cleanup() -> Work:
    from lorikeet_agent.cleanup import cleanup

    return cleanup


_WORK: Final[dict[Task, Callable[[], Work]]] = {"preflight": _preflight, "recover": _recover, "cleanup": _cleanup}


def run(task: Task, contract: Path, termination_log: Path) -> int:
    """Do `task` for a contract (JSON), write its record and return the exit code."""
    code = EXIT_DONE
    try:
        with tempfile.TemporaryDirectory() as folder:
            record = _WORK[task]()(read_contract(contract), Path(folder))
    except Exception as error:  # noqa: BLE001 - whatever it was, the pod does not end without a record
        failure = explain(error)
        if failure.reason == "InternalError":
            traceback.print_exc()
        record, code = failure.record(), failure.exit_code
    write_record(record, termination_log)
    log.event("end", reason=record.reason, message=record.message, exit_code=code)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one task and return its exit code (`lorikeet_api.contract.EXIT_*`)."""
    parser = argparse.ArgumentParser(prog="lorikeet-agent", description="Check a run, read how it ended, or delete it.")
    parser.add_argument("task", choices=get_args(Task))
    parser.add_argument("--contract", type=Path, default=Path(CONTRACT_PATH))
    parser.add_argument("--termination-log", type=Path, default=Path(TERMINATION_PATH))
    given = parser.parse_args(arguments)
    log.set_up()
    return run(given.task, given.contract, given.termination_log)


if __name__ == "__main__":
    raise SystemExit(main())
