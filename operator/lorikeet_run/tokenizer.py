"""What the base model's small files say: its tokenizer, where an engine stops, how much it has room for."""

from pathlib import Path
from typing import Any, Final

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from lorikeet_run.errors import RunError

UNREADABLE: Final = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError)
"""What the libraries raise about files that are damaged, cut short, or of another kind than they say."""

SAFE: Final[dict[str, Any]] = {"trust_remote_code": False, "local_files_only": True}
"""How transformers is to read a folder: no code out of it, nothing from elsewhere."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the base model's tokenizer, able to pad. Raises RunError (ModelInvalid)."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UNREADABLE as error:
        raise RunError(
            "ModelInvalid",
            f"the base model's tokenizer cannot be loaded: {first_line(error)}; it must be there as tokenizer.json"
            " (transformers writes one with save_pretrained)",
        ) from error
    if tokenizer.pad_token is None:
        # Padding is masked everywhere, so any token will do; the published tokenizer gets this one too.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def stop_ids(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens at which an engine stops: those of generation_config.json (else config.json), and eos_token.

    Raises RunError (ModelInvalid).
    """
    try:
        named = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
        ids = (named or AutoConfig.from_pretrained(folder, **SAFE)).eos_token_id
    except UNREADABLE as error:
        raise RunError(
            "ModelInvalid", f"the base model's generation_config.json or config.json is no use: {first_line(error)}"
        ) from error
    several = ids if isinstance(ids, list) else [ids]
    return frozenset(one for one in [*several, tokenizer.eos_token_id] if one is not None)


def limits(folder: Path) -> tuple[int | None, int | None]:
    """Return how many positions and how many token ids the base model knows, where its config says so.

    Raises RunError (ModelInvalid).
    """
    try:
        config = AutoConfig.from_pretrained(folder, **SAFE).get_text_config()
    except UNREADABLE as error:
        raise RunError("ModelInvalid", cannot_be_built(error)) from error
    return getattr(config, "max_position_embeddings", None), getattr(config, "vocab_size", None)


def cannot_be_built(error: BaseException) -> str:
    """Return what is said of a base model of which the libraries make nothing."""
    return (
        f"the base model cannot be built: {first_line(error)}; only architectures of transformers itself are loaded, no"
        " code out of a model's repository"
    )


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
