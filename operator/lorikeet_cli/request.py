"""A FineTuneJob in a file as the contract of a run on this machine: the cluster's, but for what is the machine's."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from lorikeet_api import request
from lorikeet_api.compute import Compute
from lorikeet_api.contract import RunContract, StorageAccess
from lorikeet_api.finetunejob import FineTuneJob, Output
from lorikeet_api.names import API_VERSION
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_cli.documents import Document, assign, read
from lorikeet_cli.problem import Problem
from lorikeet_run.data import read_source
from lorikeet_run.examples import Instance
from lorikeet_storage import Fetched
from lorikeet_storage.folders import use_folders

NOWHERE: Final = "s3://local"
"""Where an output lies that only this machine knows."""


def add_arguments(parser: argparse.ArgumentParser, *, sets: bool = True) -> None:
    """Add what every command about a request takes."""
    parser.add_argument(
        "-f", dest="files", metavar="FILE", type=Path, action="append", required=True,
        help="YAML of the FineTuneJob, and of its TuningProfile if it has one; may be repeated",
    )  # fmt: skip
    if sets:
        parser.add_argument(
            "--set", dest="sets", metavar="PATH=VALUE", action="append", default=[],
            help="a field of the job's spec, such as training.epochs=1; the value is YAML",
        )  # fmt: skip
    parser.add_argument(
        "--map", dest="maps", metavar="URI=DIR", action="append", default=[],
        help="read what lies at a beginning of s3:// or pvc:// URIs from a folder or file of this machine",
    )  # fmt: skip
    parser.add_argument("--s3-endpoint", metavar="URL", help="S3-compatible store; absent: the profile's, else AWS")


@dataclass(frozen=True)
class Machine:
    """What this machine decides of a run, as the command line says it."""

    folders: dict[str, Path]
    endpoint: str | None = None
    output: str | None = None
    """`s3://…`, or a folder; None: where the request says."""

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Machine":
        """Return what the arguments say. Raises Problem."""
        return cls(dict(map(_folder, given.maps)), given.s3_endpoint, getattr(given, "output", None))


def _folder(text: str) -> tuple[str, Path]:
    uri, _, folder = text.partition("=")
    if not (uri.startswith(("s3://", "pvc://")) and uri.partition("://")[2] and folder):
        raise Problem(f"--map {text}: write it as URI=DIR, for example s3://models=./models or pvc://claim=./data")
    path = Path(folder).expanduser().absolute()
    if not path.exists():
        raise Problem(f"--map {text}: {path} does not exist")
    return uri.rstrip("/"), path


def the_job(given: argparse.Namespace) -> tuple[FineTuneJob, TuningProfile]:
    """Return the one job of the files, changed by `--set`, and its profile. Raises Problem."""
    documents = read(given.files)
    jobs = [document for document in documents if document.kind == FineTuneJob.__name__]
    if len(jobs) != 1:
        raise Problem(f"{', '.join(map(str, given.files))}: one FineTuneJob is needed, there are {len(jobs)}")
    spec = jobs[0].body.setdefault("spec", {})
    for assignment in given.sets:
        assign(spec, assignment)
    refuse_other_jobs(jobs[0])
    return parse(jobs[0], documents)


def refuse_other_jobs(document: Document) -> None:
    """Raise Problem if model or rewards are what another job makes: which one that is only a cluster knows."""
    spec = _fields(document.body.get("spec"))
    rewards = _fields(_fields(spec.get("objective")).get("rlhf")).get("rewards")
    models = [_fields(_fields(each).get("model")) for each in (rewards if isinstance(rewards, list) else [])]
    if any("fineTuneJobRef" in each for each in models):
        raise Problem(
            f"{document.where}: spec.objective.rlhf.rewards names another job, which only a cluster knows: name what it"
            " has published, model: {uri: s3://…/<runId>} (with --map s3://…=DIR if it lies on this machine)"
        )
    if "from" in _fields(spec.get("model")):
        raise Problem(
            f"{document.where}: spec.model.from names another job, which only a cluster knows, and an adapter is"
            " trained further there alone: if it has published a whole model, name that, --set"
            " model={uri: s3://…/<runId>/model} (with --map s3://…=DIR if it lies on this machine)"
        )


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def parse(document: Document, documents: list[Document]) -> tuple[FineTuneJob, TuningProfile]:
    """Return a job and the profile that it names: of `documents`, or an empty one if it names none. Raises Problem."""
    job = document.parse()
    assert isinstance(job, FineTuneJob)  # noqa: S101 - its kind says so
    name = job.spec.profile_ref.name
    body = {"apiVersion": API_VERSION, "kind": TuningProfile.__name__, "metadata": {"name": name}}
    profile: object = None if "profile_ref" in job.spec.model_fields_set else TuningProfile.parse(body)
    for other in documents:
        if other.kind == TuningProfile.__name__ and _fields(other.body.get("metadata")).get("name") == name:
            profile = other.parse()
    if profile is None:
        raise Problem(f"{document.where}: TuningProfile {name} is not in these files: add it with -f")
    assert isinstance(profile, TuningProfile)  # noqa: S101 - its kind says so
    return job, profile


def instances_of(fetched: Fetched, contract: RunContract) -> Iterator[Instance]:
    """Yield what the rows of a fetched source are to a run. Raises RunError (DataInvalid)."""
    files = zip(fetched.files, (file.path for file in fetched.digest.files), strict=True)
    return read_source(list(files), contract.dataset, contract.objective.name, contract.objective.columns)


def contract_of(job: FineTuneJob, profile: TuningProfile, machine: Machine) -> RunContract:
    """Return the run's contract, and have storage look into the machine's folders. Raises Problem.

    One GPU is used if the machine has one, as in a cluster where nothing else is asked for; else the CPU.
    """
    namespace = job.metadata.namespace or "default"
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"namespace": namespace, "uid": None})})
    in_folder = machine.output is not None and "://" not in machine.output
    output = job.spec.output
    if machine.output is not None and not in_folder:
        try:
            output = Output(uri=machine.output)
        except ValidationError as error:
            raise Problem(f"--output {machine.output}: write it as s3://bucket/path, or name a folder") from error
    elif output is None and in_folder and profile.spec.storage.uri is None:
        output = Output(uri=f"{NOWHERE}/{namespace}/{job.metadata.name}")
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"output": output})})
    compute = request.overlay(Compute(gpus=1), profile.spec.defaults.compute, job.spec.compute)
    try:
        # Who asks for another job's result has been refused.
        assert job.spec.model.source is not None  # noqa: S101
        begin = request.Beginning(job.spec.model.source, job.spec.method or request.USUAL, job.spec.objective)
        made = request.contract(job, profile, compute, begin)
    except request.Refused as error:
        raise Problem(
            f"{error.message}, or give --output DIR" if error.reason == "OutputUnknown" else error.message
        ) from error
    if in_folder:
        folder = Path(str(machine.output)).expanduser().absolute()
        if folder.exists() and not folder.is_dir():
            raise Problem(f"--output {machine.output}: it is a file; name a folder")
        use_folders(machine.folders, {made.output_uri: folder})
    else:
        use_folders(machine.folders)
    endpoint = machine.endpoint or made.storage.endpoint
    return made.model_copy(
        update={
            "allow_cpu": True,
            "storage": StorageAccess(endpoint=endpoint, region=made.storage.region),
            "date": made.date or datetime.now(UTC).strftime("%Y-%m-%d"),
        }
    )
