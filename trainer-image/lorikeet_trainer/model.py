"""The base model: its shape, known before its weights are read; loaded in the precision that we say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from bitsandbytes.nn.modules import Linear4bit
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.pytorch_utils import Conv1D

from lorikeet_api.objectives import Objective
from lorikeet_api.training import Method, QLora
from lorikeet_run.errors import RunError
from lorikeet_run.tokenizer import SAFE, UNREADABLE, cannot_be_built, first_line
from lorikeet_trainer.device import Compute


@dataclass(frozen=True)
class Quantized:
    """How much of the base is held in 4 bits."""

    layers: int
    percent: float
    """Share of the base model's parameters."""


REWARD_HEAD: Final = "score"
"""Name of the layer that gives an answer its number; drawn at random, and trained whole."""


def _kind(objective: Objective) -> tuple[Any, dict[str, Any]]:
    """Return what to load a base model as, and with which settings."""
    if objective.reward is not None:
        return AutoModelForSequenceClassification, {"num_labels": 1}
    return AutoModelForCausalLM, {}


def head(model: PreTrainedModel) -> nn.Module | None:
    """Return the layer behind the last block."""
    found: nn.Module | None = getattr(model, REWARD_HEAD, None)
    return found if found is not None else model.get_output_embeddings()  # type: ignore[no-untyped-call]


def shape(folder: Path, objective: Objective) -> PreTrainedModel:
    """Return the model without its weights, of which none is read.

    Raises RunError (ModelInvalid) for an architecture that would need code from its repository or that transformers
    does not know.
    """
    try:
        kind, settings = _kind(objective)
        config = AutoConfig.from_pretrained(folder, **settings, **SAFE)
        with torch.device("meta"):
            model: PreTrainedModel = kind.from_config(config, trust_remote_code=False)
    except UNREADABLE as error:
        raise RunError("ModelInvalid", cannot_be_built(error)) from error
    if objective.reward is not None and not hasattr(model, REWARD_HEAD):
        raise RunError(
            "MethodNotApplicable",
            f"objective reward is not applicable: {type(model).__name__} has no layer {REWARD_HEAD}; choose a base"
            " model such as Llama, Qwen, Mistral or Gemma",
        )
    return model


def load(
    folder: Path,
    method: Method,
    objective: Objective,
    compute: Compute,
    attention: str | None = None,
    *,
    frozen: bool = False,
    sharded: bool = False,
) -> PreTrainedModel:
    """Return the base model on its device; `attention` as transformers calls it. Raises RunError (ModelInvalid).

    A full fine-tune keeps its weights in float32 (and computes in `compute.dtype` by autocast): steps of 1e-5 vanish
    in bfloat16's eight bits. Frozen weights need no more than `compute.dtype`: `frozen` is a whole model that is not
    trained, but read as what it has become. `sharded` has each rank read and hold a part of each weight alone.
    """
    whole = method.full is not None
    wanted: dict[str, Any] = {"dtype": torch.float32 if whole and not frozen else compute.dtype}
    if attention is not None:
        wanted["attn_implementation"] = attention
    if method.qlora is not None:
        wanted["quantization_config"] = _four_bits(method.qlora, objective, compute)
    if sharded:
        wanted["distributed_config"] = DistributedConfig(fsdp_size=compute.ranks)
    else:
        wanted["device_map"] = {"": compute.device}
    kind, settings = _kind(objective)
    try:
        loaded: Any = kind.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            **wanted,
            **settings,
            **SAFE,
        )
    except UNREADABLE as error:
        if "memory" in str(error):
            raise
        raise RunError("ModelInvalid", f"the base model cannot be loaded: {first_line(error)}") from error
    model: PreTrainedModel = loaded[0]
    has_head = whole and frozen
    drawn = f"{REWARD_HEAD}.weight" if objective.reward is not None and not has_head else None
    if missing := sorted(set(loaded[1]["missing_keys"]) - {drawn}):
        # transformers makes them up at random and only logs it.
        raise RunError(
            "ModelInvalid",
            f"the base model's files lack {len(missing)} of its weights ({', '.join(missing[:3])}, …): upload all"
            " .safetensors files that it has, with their index",
        )
    model.config.use_cache = False
    return model


def _four_bits(qlora: QLora, objective: Objective, compute: Compute) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=qlora.quant_type,
        bnb_4bit_use_double_quant=qlora.double_quant,
        bnb_4bit_compute_dtype=compute.dtype,
        llm_int8_skip_modules=[REWARD_HEAD] if objective.reward is not None else None,
    )


def quantized(model: PreTrainedModel) -> Quantized:
    """Return how much of a base model is held in 4 bits.

    Raises RunError (MethodNotApplicable) if a linear layer is not that transformers does not mean to leave out.
    """
    packed = _packed(model)
    last = head(model)
    left_out = [*(model._keep_in_fp32_modules or []), *(model._keep_in_fp32_modules_strict or [])]
    whole = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not isinstance(module, Linear4bit)
        and module is not last
        and not set(left_out) & set(name.split("."))
    ]
    if whole or not packed:
        raise RunError(
            "MethodNotApplicable",
            f"qlora is not applicable: {len(whole)} linear layers of the base model stay in 16 bits"
            f" ({', '.join(whole[:3])}), {len(packed)} are held in 4; choose lora",
        )
    return Quantized(len(packed), 100.0 * sum(packed.values()) / count(model))


def _packed(model: nn.Module) -> dict[int, int]:
    """Return the weights held in 4 bits by identity, each with the number of parameters that it stands for.

    They lie packed, two to a byte, so their shape tells nothing; the layer's own sizes do.
    """
    layers = (module for module in model.modules() if isinstance(module, Linear4bit))
    return {id(layer.weight): int(layer.in_features) * int(layer.out_features) for layer in layers}


def count(model: nn.Module) -> int:
    """Return the number of a model's parameters, those in 4 bits among them."""
    packed = _packed(model)
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())
