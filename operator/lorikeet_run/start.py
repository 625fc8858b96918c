"""The adapter that a run begins with: looked at before the run, fetched for it, and known to be what the run trains."""

import json
from pathlib import Path
from typing import Any, Final

from lorikeet_api.contract import RunContract, SourceDigest, Start
from lorikeet_api.training import ALL_LINEAR, Adapter, is_named
from lorikeet_run import log
from lorikeet_run.errors import RunError
from lorikeet_run.patience import patiently
from lorikeet_storage import Survey
from lorikeet_storage.adapter import CONFIG, WEIGHTS, read_adapter, same_weights
from lorikeet_storage.adapter import Adapter as Published
from lorikeet_storage.s3 import S3

_FIELD: Final = "spec.model.from of a new job"
"""Where such an adapter is named."""


def check_start(contract: RunContract, start: Start, base: Survey, folder: Path, seconds: float) -> None:
    """Raise RunError or StorageError unless an adapter can be trained further; its weights are not read.

    Args:
        contract: the run.
        start: the adapter that it begins with.
        base: its base model, as it is now.
        folder: for the adapter's configuration.
        seconds: for how long a store that is away is waited for.
    """
    with log.timed("check", what="adapter", uri=start.uri):
        found, _ = _bring(contract, start, folder, seconds, whole=False)
        there = {(entry.name, entry.size) for entry in base.entries}
        trained_on = found.manifest.base_model.files
        if any((file.path, file.size) not in there for file in trained_on if file.path.endswith(WEIGHTS)):
            raise _other_base(start, found, contract)


def fetch_start(contract: RunContract, start: Start, base: SourceDigest, folder: Path, seconds: float) -> SourceDigest:
    """Bring an adapter's configuration and weights into a folder, and return what they are.

    The arguments are those of `check_start`, but that the base model is here. Raises RunError and StorageError.
    """
    with log.timed("fetch", what="adapter", uri=start.uri) as told:
        found, digest = _bring(contract, start, folder, seconds, whole=True)
        told["bytes"] = sum(file.size for file in digest.files)
    if not same_weights(base.files, found.manifest.base_model.files):
        raise _other_base(start, found, contract)
    return digest


def _bring(
    contract: RunContract, start: Start, folder: Path, seconds: float, *, whole: bool
) -> tuple[Published, SourceDigest]:
    """Return an adapter with what was fetched of it: its weights too, or its configuration alone."""
    store = S3(contract.storage, "start")
    found = patiently(lambda: read_adapter(store, start.uri, start.sha256, _FIELD), seconds)
    names = [name for name in found.files if name == CONFIG or (whole and name.endswith(WEIGHTS))]
    folder.mkdir(parents=True, exist_ok=True)
    files = patiently(lambda: found.fetch(store, names, folder), seconds)
    assert contract.method.adapter is not None  # noqa: S101 - who goes on from an adapter trains one
    _check_settings(json.loads((folder / CONFIG).read_bytes()), contract.method.adapter, start)
    return found, SourceDigest(uri=start.uri, files=files)


def _check_settings(config: dict[str, Any], adapter: Adapter, start: Start) -> None:
    """Check that peft's configuration of a published adapter is what the run's method would make."""
    wanted: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "use_rslora": adapter.rs_lora,
        "use_dora": adapter.dora,
    }
    if adapter.target_modules != [ALL_LINEAR]:  # of which the base model says what they are
        wanted["target_modules"] = sorted(adapter.target_modules)
    has = {**config, "target_modules": sorted(config["target_modules"])}
    wrong = [f"{key} {has.get(key)!r} instead of {value!r}" for key, value in wanted.items() if has.get(key) != value]
    saved = config.get("modules_to_save") or []
    names = {next((name for name in adapter.modules_to_save if is_named(each, name)), None) for each in saved}
    if names != set(adapter.modules_to_save):
        wrong.append(f"modules_to_save {saved} instead of {adapter.modules_to_save}")
    if wrong:
        raise RunError(
            "ModelInvalid",
            f"the adapter in {start.uri} is not what this job's method trains: it has {', '.join(wrong)}; leave"
            " spec.method out of a new job to go on as that one",
        )


def _other_base(start: Start, found: Published, contract: RunContract) -> RunError:
    return RunError(
        "SourceChanged",
        f"the adapter in {start.uri} was trained on {found.manifest.base_model.uri}, and {contract.model.uri} has other"
        " weights now: put the base model back as it was, or train an adapter on what is there now",
    )
