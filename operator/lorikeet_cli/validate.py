"""`lorikeet validate`: what can be found wrong with resources before a GPU is asked for, and without torch."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lorikeet_api.conditions import ADVICE_OUT_OF_MEMORY
from lorikeet_api.contract import RunContract, data_sources, data_uses, read_as, servable
from lorikeet_api.defaults import unusual
from lorikeet_api.finetunejob import FineTuneJob, JobModel
from lorikeet_cli.documents import Document, read
from lorikeet_cli.problem import Problem
from lorikeet_cli.request import NOWHERE, Machine, add_arguments, contract_of, instances_of, parse
from lorikeet_run.errors import RunError, explain
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.memory import GIB, Decoder, estimate
from lorikeet_run.mixture import check_split
from lorikeet_run.reward_models import check_reward_models
from lorikeet_run.rewards import rules
from lorikeet_storage import StorageError, fetch_data, fetch_description, survey_model


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    does = "Check resources, and a FineTuneJob's data and model; needs neither a GPU nor a cluster."
    parser = commands.add_parser("validate", help=does, description=does)
    add_arguments(parser, sets=False)
    parser.add_argument("--offline", action="store_true", help="check the resources alone, not data and model")
    parser.add_argument(
        "--gpu-memory", metavar="GIB", type=float, help="memory of the GPU that is meant: whether the run fits into it"
    )
    parser.set_defaults(command=validate)


def validate(given: argparse.Namespace) -> int:
    """Check every document and print what is found; return 0, or the exit code of the first failure."""
    documents = read(given.files)
    if not documents:
        raise Problem("there is no resource of Lorikeet's in these files")
    machine = Machine.of(given)
    codes = [_check(document, documents, machine, given) for document in documents]
    return next((code for code in codes if code), 0)


def _check(document: Document, documents: list[Document], machine: Machine, given: argparse.Namespace) -> int:
    """Check one document and print what is found; return its exit code."""
    try:
        if document.kind != FineTuneJob.__name__:
            document.parse()
            print(f"{document.where}: ok")
            return 0
        job, profile = parse(document, documents)
        # Where the result goes may be the cluster's profile's to say.
        output = NOWHERE if job.spec.output is None and profile.spec.storage.uri is None else None
        contract = contract_of(_with_a_model(job), profile, Machine(machine.folders, machine.endpoint, output))
        found = list(_of_request(contract))
        if job.spec.earlier:
            others = ", ".join(job.spec.earlier)
            print(f"{document.where}: ok, but for the data: a cluster alone knows what FineTuneJob {others} has made")
            return 0
        found += [] if given.offline else list(_of_sources(contract, given.gpu_memory))
    except Problem as error:
        print(error)
        return error.exit_code
    except (RunError, StorageError) as error:
        failure = explain(error)
        print(f"{document.where}: {failure.reason}: {failure.message}")
        return failure.exit_code
    print(f"{document.where}: ok, run {contract.run_id}")
    for line in found:
        print(f"  {line}")
    return 0


def _with_a_model(job: FineTuneJob) -> FineTuneJob:
    """Return a job whose base model is named: one that nobody looks at, where an earlier job is to make it."""
    if job.spec.model.uri is not None:
        return job
    model = JobModel(uri=f"{NOWHERE}/model")
    return job.model_copy(update={"spec": job.spec.model_copy(update={"model": model})})


def _of_request(contract: RunContract) -> Iterator[str]:
    """Yield what the request alone says of the run. Raises RunError."""
    hyper = Hyperparameters.of(contract)
    rules(contract.objective)
    what = "answers" if contract.objective.rlhf is not None else "examples"
    at_a_time = "as many as the GPU has memory for" if hyper.tries_micro_batch else str(hyper.micro_batch_size)
    yield f"batch: {hyper.micro_batch_size * hyper.accumulation * hyper.ranks} {what} a step, {at_a_time} at a time"
    if (can := servable(contract.method, contract.objective)).reason:
        yield f"serving: no engine takes the result as an adapter: {can.reason}"
    for warning in unusual(contract.method, contract.objective.name, contract.training):
        yield f"warning: {warning}"


def _of_sources(contract: RunContract, gpu_memory: float | None) -> Iterator[str]:
    """Look at the model and read every row of the data, as a run does before it trains. Raises as a run does."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _of_model(contract, Path(folder, "model"), gpu_memory)
        read = []
        uses = data_uses(contract)
        for index, (source, use) in enumerate(zip(data_sources(contract), uses, strict=True)):
            fetched = fetch_data(source, Path(folder, str(index)), contract.storage)
            read.append(partial(instances_of, fetched, read_as(contract, use)))
            yield f"data: {source.uri}: {sum(1 for _ in read[-1]())} rows"
        if contract.dataset.eval_fraction is not None:
            trained = [again for use, again in zip(uses, read, strict=True) if use == "training"]
            check_split(example for again in trained for example in again())
        check_reward_models(contract, Path(folder, "model"), Path(folder, "rewards"), seconds=0)


def _of_model(contract: RunContract, folder: Path, gpu_memory: float | None) -> Iterator[str]:
    model = survey_model(contract.model, contract.storage)
    weights = sum(entry.size for entry in model.entries if entry.name.endswith(".safetensors"))
    yield f"model: {contract.model.uri}: {weights / GIB:.3g} GiB of weights"
    fetch_description(model, folder)
    try:
        config = json.loads((folder / "config.json").read_bytes())
        positions = config.get("text_config", config).get("max_position_embeddings")
    except (ValueError, AttributeError) as error:
        raise RunError("ModelInvalid", f"config.json of {contract.model.uri} is no use: {error}") from error
    if isinstance(positions, int) and contract.dataset.max_length > positions:
        yield (
            f"warning: dataset.maxLength is {contract.dataset.max_length}, and the model has {positions} positions:"
            " one longer row ends the run"
        )
    if contract.gpus:
        yield f"memory: {_fit(contract, Decoder.of(config, weights), gpu_memory)}"


def _fit(contract: RunContract, model: Decoder | None, gpu_memory: float | None) -> str:
    """Say what a run needs of each GPU. Raises RunError (OutOfMemory) if that is more than there is."""
    if model is None:
        return "not known for a model with such a config.json"
    needed = estimate(contract, model) / GIB
    at_a_time = " with one example at a time" if Hyperparameters.of(contract).tries_micro_batch else ""
    told = f"by estimate {needed:.3g} GiB{at_a_time} on each GPU"
    if gpu_memory is None:
        return told
    if needed > gpu_memory:
        raise RunError("OutOfMemory", f"the run needs {told}, which has {gpu_memory:g}: {ADVICE_OUT_OF_MEMORY}")
    return f"{told}, which has {gpu_memory:g}"
