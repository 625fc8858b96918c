"""`lorikeet report JOB`: what a job of the cluster has made, its figures, and its report as a file."""

import argparse
from pathlib import Path
from typing import Any, Final

from lorikeet_api.contract import Metrics, StorageAccess
from lorikeet_cli import figures
from lorikeet_cli.kubectl import FAILED, Kubectl, add_arguments
from lorikeet_cli.problem import Problem
from lorikeet_storage.s3 import MIB, S3
from lorikeet_storage.uri import parse_s3

_LARGEST: Final = 256 * MIB


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    does = "Print what a FineTuneJob has published, and its figures."
    parser = commands.add_parser("report", help=does, description=does)
    add_arguments(parser)
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the run's report (HTML) to this file")
    parser.add_argument("--s3-endpoint", metavar="URL", help="where this machine reaches the store; absent: the run's")
    parser.set_defaults(command=report)


def report(given: argparse.Namespace) -> int:
    """Print the job's artifacts and figures, and fetch its report if asked. Raises Problem and StorageError."""
    status = Kubectl.of(given).get().get("status") or {}
    artifacts = status.get("artifacts")
    if artifacts is None:
        said = ": ".join(part for part in (status.get("phase"), status.get("message")) if part) or "nothing yet"
        raise Problem(f"FineTuneJob {given.job} has published nothing ({said})", FAILED)
    for line in figures.lines(_metrics(status.get("metrics") or {})):
        print(line)
    print(f"published {artifacts['uri']}, revision {artifacts['revision']}")
    uri = artifacts.get("report")
    if uri is not None:
        print(f"report    {uri}")
    if given.output is not None:
        _fetch(given, uri, status)
    return 0


def _metrics(told: dict[str, Any]) -> Metrics:
    """Return the figures that are known here; the operator may be newer."""
    known = {info.alias for info in Metrics.model_fields.values()}
    return Metrics.model_validate({name: value for name, value in told.items() if name in known})


def _fetch(given: argparse.Namespace, uri: str | None, status: dict[str, Any]) -> None:
    if uri is None:
        raise Problem(f"the run of FineTuneJob {given.job} has no report, so there is nothing to write", FAILED)
    told = (((status.get("resolved") or {}).get("contract") or {}).get("storage")) or {}
    access = StorageAccess(endpoint=given.s3_endpoint or told.get("endpoint"), region=told.get("region"))
    page = S3(access, "output").read(parse_s3(uri), _LARGEST)
    if page is None:
        raise Problem(f"{uri} does not exist: it was removed from the store", FAILED)
    try:
        given.output.write_bytes(page)
    except OSError as error:
        raise Problem(f"{given.output} cannot be written: {error.strerror}", FAILED) from error
    print(f"written   {given.output}")
