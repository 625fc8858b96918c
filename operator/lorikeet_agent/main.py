"""`lorikeet-agent TASK`: the contract is a file; a task that ends leaves its record in the termination message."""

import argparse
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from lorikeet_api.contract import CONTRACT_PATH, EXIT_DONE, TERMINATION_PATH, RunContract, RunRecord
from lorikeet_api.names import Task
from lorikeet_api.serving import ENGINE_CONTRACT, RESOLVE_CONTRACT, EngineContract, ResolveContract, ResolveRecord
from lorikeet_run import log
from lorikeet_run.errors import RunError, explain
from lorikeet_run.record import read_contract, write_record

Work = Callable[[RunContract, Path], RunRecord]
"""A task: gets the contract and an empty folder, returns the record."""
R = TypeVar("R", RunRecord, ResolveRecord)


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

    def work() -> tuple[RunRecord, int]:
        with tempfile.TemporaryDirectory() as folder:
            return _WORK[task]()(read_contract(contract), Path(folder)), EXIT_DONE

    return _end(work, RunError.record, lambda record: write_record(record, termination_log))


def fetch_model(contract: Path, termination_log: Path) -> int:
    """Bring what an engine is started with into its pod, write the record and return the exit code."""

    def work() -> tuple[RunRecord, int]:
        from lorikeet_agent.serving.base import fetch
        from lorikeet_agent.serving.contracts import read
        from lorikeet_agent.serving.settings import Settings

        return fetch(Settings.of(read(contract, EngineContract)))

    return _end(work, RunError.record, lambda record: write_record(record, termination_log))


def resolve(contract: Path, termination_log: Path) -> int:
    """Find out what URIs mean, write the record and return the exit code."""
    from lorikeet_agent.serving import resolve as resolving
    from lorikeet_agent.serving.contracts import read

    def work() -> tuple[ResolveRecord, int]:
        return resolving.resolve(read(contract, ResolveContract)), EXIT_DONE

    return _end(work, resolving.failed, lambda record: resolving.write(record, termination_log))


def _end(work: Callable[[], tuple[R, int]], failed: Callable[[RunError], R], write: Callable[[R], None]) -> int:
    """Do `work`, write its record or that of its failure, and return the exit code."""
    try:
        record, code = work()
    except Exception as error:  # noqa: BLE001 - whatever it was, the pod does not end without a record
        failure = explain(error)
        if failure.reason == "InternalError":
            traceback.print_exc()
        record, code = failed(failure), failure.exit_code
    write(record)
    log.event("end", reason=record.reason, message=record.message, exit_code=code)
    return code


def _serve(contract: Path) -> int:
    from lorikeet_agent.serving.main import main as serve

    return serve(contract)


def _route() -> int:
    from lorikeet_agent.routing.main import main as route

    return route()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one task and return its exit code (`lorikeet_api.contract.EXIT_*`)."""
    given = _parser().parse_args(arguments)
    log.set_up()
    match given.task:
        case "serve":
            return _serve(given.contract)
        case "route":
            return _route()
        case "fetch-model":
            return fetch_model(given.contract, given.termination_log)
        case "resolve":
            return resolve(given.contract, given.termination_log)
        case task:
            return run(task, given.contract, given.termination_log)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lorikeet-agent", description="What Lorikeet does in a team's namespace.")
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")

    def add(name: str, does: str, contract: str | None, *, records: bool) -> None:
        task = tasks.add_parser(name, help=does, description=does)
        if contract is not None:
            task.add_argument("--contract", type=Path, default=Path(contract))
        if records:
            task.add_argument("--termination-log", type=Path, default=Path(TERMINATION_PATH))

    add("preflight", "Check a run before it asks for a GPU.", CONTRACT_PATH, records=True)
    add("recover", "Read how a run ended whose record is lost.", CONTRACT_PATH, records=True)
    add("cleanup", "Delete what a run has written.", CONTRACT_PATH, records=True)
    add("resolve", "Find out what the URIs of a ModelDeployment mean.", RESOLVE_CONTRACT, records=True)
    add("fetch-model", "Bring what an engine is started with into its pod.", ENGINE_CONTRACT, records=True)
    add("serve", "Hold the wanted adapters in the engine of this pod.", ENGINE_CONTRACT, records=False)
    add("route", "Lead the Envoy of this pod from one configuration to the next.", None, records=False)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
