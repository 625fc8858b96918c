"""What an adapter's manifest must say for the engine of this pod to take the adapter."""

from pathlib import Path

from lorikeet_agent.serving.errors import AdapterError
from lorikeet_agent.serving.settings import DIGEST
from lorikeet_api.contract import Manifest, SourceDigest
from lorikeet_api.serving import AdapterRevision, EngineContract
from lorikeet_storage.adapter import same_weights


def check_fit(manifest: Manifest, revision: AdapterRevision, contract: EngineContract, model: Path) -> None:
    """Raise AdapterError unless the engine can take the adapter: NotServable, RankTooHigh, BaseModelDiffers."""
    if manifest.kind != "adapter" or not manifest.servable.lora:
        why = manifest.servable.reason or f"it is a {manifest.kind}, no LoRA adapter"
        raise AdapterError("NotServable", f"{revision.uri} cannot be served on a base model ({why}): name another run")
    if manifest.rank is not None and manifest.rank > contract.max_lora_rank:
        raise AdapterError(
            "RankTooHigh",
            f"{revision.uri} has rank {manifest.rank}, the engine takes at most {contract.max_lora_rank}: raise"
            f" spec.engine.{contract.engine}.maxLoraRank",
        )
    base = read_digest(model)
    if not same_weights(base.files, manifest.base_model.files):
        raise AdapterError(
            "BaseModelDiffers",
            f"{revision.uri} was trained on {manifest.base_model.uri}, whose weights are not those of {base.uri} in"
            " this pod: serve it on the model that it was trained on, or train it on this one",
        )


def read_digest(model: Path) -> SourceDigest:
    """Return what the base model in a folder is, as it was fetched. Raises OSError and ValueError."""
    return SourceDigest.model_validate_json((model / DIGEST).read_bytes())
