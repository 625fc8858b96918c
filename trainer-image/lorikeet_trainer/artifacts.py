"""What is published: an adapter or a model, as a stranger and an engine read it."""

import json
import re
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorikeet_api.contract import SourceDigest
from lorikeet_run.errors import RunError

_ADAPTER_KEY: Final = re.compile(r"\.lora_[AB]\.weight$")


def base_name(base: SourceDigest) -> tuple[str, str | None]:
    """Return the name and the revision by which others load the base: the hub's, or the source's URI."""
    return base.uri.removeprefix("hf://").rstrip("/"), base.revision


def save_adapter(model: PeftModel, tokenizer: PreTrainedTokenizerBase, base: SourceDigest, folder: Path) -> None:
    """Write the adapter in peft's layout. Raises RunError (InternalError) if it holds anything but LoRA weights."""
    config: Any = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base_name(base)
    # peft keeps a set, whose order changes from process to process; equal runs publish equal bytes.
    config.target_modules = sorted(config.target_modules)
    # "auto" would ask the hub about the base and could put whole embeddings into the adapter, which engines refuse.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    keys = tensor_names(folder / "adapter_model.safetensors")
    foreign = [key for key in keys if not _ADAPTER_KEY.search(key)]
    if foreign or not keys:
        raise RunError("InternalError", f"the adapter would hold {foreign[:3] or 'nothing'}, which engines do not load")


def published_dtype(folder: Path) -> torch.dtype:
    """Return the type in which the base model in `folder` was saved; a full fine-tune is published in it too."""
    dtype = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: Path, folder: Path) -> None:
    """Write a whole model in transformers' layout, large ones in shards; `base` is the folder that it came from."""
    if (base / "generation_config.json").exists():
        # trl has set fields of it; a changed one is checked more strictly than many published models stand.
        model.generation_config = GenerationConfig.from_pretrained(base)
    model.config.use_cache = True
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tensor_names(path: Path) -> list[str]:
    """Return the names in a safetensors file, from its header alone (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        names = json.loads(file.read(size))
    return [name for name in names if name != "__metadata__"]
