"""`lorikeet-agent fetch-model`: brings what an engine is started with into its pod."""

import json
import shutil
from functools import partial
from pathlib import Path

from lorikeet_agent.serving import cache, guard
from lorikeet_agent.serving.errors import AdapterError, failure_of, is_full
from lorikeet_agent.serving.fetch import AdapterFiles
from lorikeet_agent.serving.settings import DIGEST, Settings
from lorikeet_api.contract import EXIT_BAD_REQUEST, EXIT_DOES_NOT_FIT, EXIT_DONE, EXIT_INTERNAL, RunRecord
from lorikeet_api.serving import GUARD_MODULE, AdapterRevision
from lorikeet_run import log
from lorikeet_run.errors import RunError
from lorikeet_run.patience import FETCH_SECONDS, patiently
from lorikeet_storage import StorageError, fetch_model


def fetch(settings: Settings, patience_seconds: float = FETCH_SECONDS) -> tuple[RunRecord, int]:
    """Bring base model, guard, and the adapters that the engine is started with; return the record and exit code.

    A store that is away is waited for. Raises RunError, StorageError and OSError for the base model; an adapter's
    failure is in the record.
    """
    contract = settings.contract
    bring = partial(_bring_model, settings, patience_seconds)
    try:
        if contract.cached:
            cache.provide(settings.cache, contract.pin, bring)
        else:
            settings.model.mkdir(parents=True, exist_ok=True)
            bring(settings.model)
    except (StorageError, OSError) as error:
        if is_full(error):
            room = "the profile's model cache" if contract.cached else "the pod's scratch volume (compute.scratch)"
            raise RunError("OutOfDisk", f"no room is left for {contract.model.uri}: enlarge {room}") from error
        raise
    settings.guard.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(guard.__file__, settings.guard / f"{GUARD_MODULE}.py")
    if not contract.hot_loading:
        files = AdapterFiles(settings)
        files.remove_abandoned()
        for revision in contract.adapters:
            try:
                _bring_adapter(files, revision, patience_seconds)
            except AdapterError as error:
                return _failed(revision, error)
    count = 0 if contract.hot_loading else len(contract.adapters)
    return RunRecord(reason="Fetched", message=f"{contract.model.uri} is here, and {count} adapters"), EXIT_DONE


def _bring_model(settings: Settings, seconds: float, into: Path) -> None:
    contract = settings.contract
    with log.timed("fetch", what="model", uri=contract.model.uri) as told:
        try:
            fetched = patiently(
                lambda: fetch_model(contract.model, into, contract.storage, contract.pin),
                seconds,
            )
        except StorageError as error:
            if error.reason != "SourceChanged":
                raise
            raise RunError(
                "SourceChanged",
                f"{contract.model.uri} is not what it was when it was first served: put it back as it was, or create"
                " another ModelDeployment to serve what is there now",
            ) from error
        told["bytes"] = sum(file.size for file in fetched.digest.files)
    (into / DIGEST).write_text(json.dumps(fetched.digest.to_wire()), encoding="utf-8")


def _bring_adapter(files: AdapterFiles, revision: AdapterRevision, seconds: float) -> None:
    try:
        patiently(lambda: files.ensure(revision), seconds)
    except Exception as error:
        raise failure_of(error) from error


def _failed(revision: AdapterRevision, error: AdapterError) -> tuple[RunRecord, int]:
    message = f"adapter {revision.served}: {error.message}"
    code = EXIT_DOES_NOT_FIT if error.reason == "OutOfDisk" else EXIT_BAD_REQUEST
    if error.retryable or error.reason == "InternalError":
        code = EXIT_INTERNAL
    return RunRecord(reason=error.reason, message=message, retryable=code == EXIT_INTERNAL), code
