"""The reward models of an rlhf run: looked at before it, fetched for it, and known to read what the model writes."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from lorikeet_api.contract import FileDigest, Manifest, RunContract, SourceDigest, data_sources
from lorikeet_run import log
from lorikeet_run.errors import RunError
from lorikeet_run.patience import patiently
from lorikeet_storage import fetch_model, survey_model
from lorikeet_storage.adapter import WEIGHTS, Adapter, read_adapter, same_weights
from lorikeet_storage.publish import MANIFEST
from lorikeet_storage.stores import open_run

PUBLISHED: Final = "published"
"""Where the files of a reward model lie in its folder; its manifest lies beside."""
BASE: Final = "base"
"""Where the base model of a reward adapter lies, unless it is that of the run."""
_TOKENIZER: Final = "tokenizer.json"
_FIELD: Final = "objective.rlhf.rewards[].model of a new job"
"""Where reward models are named."""


def check_reward_models(contract: RunContract, model: Path, folder: Path, seconds: float) -> list[str]:
    """Return the sha256 of each reward model's manifest. No weights are read.

    Args:
        contract: the run.
        model: where the small files of its base model are.
        folder: for the tokenizers of the reward models.
        seconds: for how long a store that is away is waited for.

    Raises:
        RunError, StorageError: if one is not there, is none, or has another tokenizer.
    """
    pins = []
    for number, found in enumerate(_each(contract, seconds)):
        with log.timed("check", what="reward model", uri=str(found.location)):
            if (base := _own_base(contract, found)) is not None and base.uri.rstrip("/") != contract.model.uri.rstrip(
                "/"
            ):
                patiently(partial(survey_model, found.manifest.contract.model, contract.storage), seconds)
            _bring(contract, found, [_TOKENIZER], folder / str(number), seconds)
            _check_tokenizer(found, folder / str(number), model)
        pins.append(hashlib.sha256(found.content).hexdigest())
    return pins


def fetch_reward_models(
    contract: RunContract, base: SourceDigest, model: Path, folder: Path, seconds: float
) -> list[SourceDigest]:
    """Bring each reward model into a folder of its number in `folder`, and return what they are.

    `base` is the run's base model, which lies in the folder `model`; the other arguments are those of
    `check_reward_models`. Raises RunError and StorageError.
    """
    digests = []
    for number, found in enumerate(_each(contract, seconds)):
        own = folder / str(number)
        with log.timed("fetch", what="reward model", uri=str(found.location)) as told:
            files = _bring(contract, found, list(_files(found)), own / PUBLISHED, seconds)
            _check_tokenizer(found, own / PUBLISHED, model)
            (own / MANIFEST).write_bytes(found.content)
            if (needed := _own_base(contract, found)) is not None and not same_weights(needed.files, base.files):
                _fetch_base(contract, found, own / BASE, seconds)
            told["bytes"] = sum(file.size for file in files)
        manifest = FileDigest(path=MANIFEST, sha256=hashlib.sha256(found.content).hexdigest(), size=len(found.content))
        digests.append(SourceDigest(uri=str(found.location), files=[manifest, *files]))
    return digests


def is_whole(manifest: Manifest) -> bool:
    """Return whether a reward model was published whole, not as an adapter."""
    return manifest.contract.method.full is not None


def _each(contract: RunContract, seconds: float) -> Sequence[Adapter]:
    """Return the reward models of a run as their manifests tell them. Raises RunError and StorageError."""
    rlhf = contract.objective.rlhf
    if rlhf is None or not rlhf.models:
        return []
    first = 1 + len(data_sources(contract))
    pins = contract.pins[first:] if contract.pins else []
    found = []
    for number, model in enumerate(rlhf.models):
        assert model.uri is not None  # noqa: S101 - a job's name has become a folder before there is a contract
        uri, pin = model.uri, pins[number] if number < len(pins) else model.sha256
        store = open_run(uri, contract.storage, "reward")
        one = patiently(partial(read_adapter, store, uri, pin, _FIELD), seconds)
        if one.manifest.kind != "reward":
            raise RunError(
                "ModelInvalid",
                f"{uri} has published no reward model, its objective was {one.manifest.contract.objective.name}: name"
                " the folder of a run of objective reward in objective.rlhf.rewards",
            )
        found.append(one)
    return found


def _own_base(contract: RunContract, found: Adapter) -> SourceDigest | None:
    """Return the base model that a reward adapter was made for; None for a whole model. Raises RunError."""
    if is_whole(found.manifest):
        return None
    base = found.manifest.base_model
    if base.uri.startswith("pvc://") and base.uri.rstrip("/") != contract.model.uri.rstrip("/"):
        raise RunError(
            "ModelInvalid",
            f"the reward model in {found.location} was trained on {base.uri}, a volume that this run does not mount:"
            f" train it on {contract.model.uri}, or on a model in S3 or of the hub",
        )
    return base


def _fetch_base(contract: RunContract, found: Adapter, into: Path, seconds: float) -> None:
    trained = found.manifest.contract
    pin = trained.pins[0] if trained.pins else None
    fetched = patiently(lambda: fetch_model(trained.model, into, contract.storage, pin), seconds)
    if not same_weights(fetched.digest.files, found.manifest.base_model.files):
        raise RunError(
            "SourceChanged",
            f"the reward model in {found.location} was trained on {trained.model.uri}, which has other weights now: put"
            " that model back as it was, or train a reward model on what is there now",
        )


def _files(found: Adapter) -> dict[str, FileDigest]:
    return found.below("model/") if is_whole(found.manifest) else found.files


def _bring(contract: RunContract, found: Adapter, names: list[str], into: Path, seconds: float) -> list[FileDigest]:
    """Fetch some of a reward model's files. Raises RunError and StorageError."""
    files = _files(found)
    if _TOKENIZER not in files or not any(name.endswith(WEIGHTS) for name in files):
        raise RunError(
            "ModelInvalid",
            f"the reward model in {found.location} has no {_TOKENIZER} with {WEIGHTS} files beside it: publish it anew",
        )
    into.mkdir(parents=True, exist_ok=True)
    store = open_run(str(found.location), contract.storage, "reward")
    return patiently(lambda: found.fetch(store, names, into, files), seconds)


def _check_tokenizer(found: Adapter, folder: Path, model: Path) -> None:
    """Raise RunError unless every token of the run's model means the same to a reward model."""
    own, others = (_vocabulary(each / _TOKENIZER) for each in (model, folder))
    differing = [token for token, number in own.items() if others.get(token) != number]
    if differing:
        raise RunError(
            "ModelInvalid",
            f"the reward model in {found.location} has another tokenizer than the model that is trained"
            f" ({len(differing)} of {len(own)} tokens, {sorted(differing)[0]!r} for one): train a reward model on the"
            " same base model, or on one with the same tokenizer",
        )


def _vocabulary(path: Path) -> dict[str, int]:
    """Return the numbers of all tokens, by tokenizers alone: transformers' own would import torch."""
    try:
        found: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:
        raise RunError(
            "ModelInvalid", f"{path.name} of {path.parent.name} cannot be read ({error}): publish it again"
        ) from error
    return found
