"""The base model: inspected before its weights are read, loaded in the precision that we say, made trainable."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from lorikeet_api.training import Lora, Method, QLora
from lorikeet_run.errors import RunError
from lorikeet_run.tokenizer import SAFE, UNREADABLE, first_line
from lorikeet_trainer.device import Compute


@dataclass(frozen=True)
class Quantized:
    """How much of the base is held in 4 bits."""

    layers: int
    percent: float
    """Share of the base model's parameters."""


@dataclass
class Trainable:
    """A model ready to be trained."""

    model: PreTrainedModel | PeftModel
    dtype: torch.dtype
    """Of every trained parameter."""
    trained: int
    """Trained parameters."""
    total: int
    """All parameters."""
    quantized: Quantized | None


def inspect(folder: Path, method: Method) -> None:
    """Check that `method` fits the model, by its shape alone: no weight is read.

    Raises RunError: ModelInvalid for an architecture that would need code from its repository or that transformers
    does not know, MethodNotApplicable for modules that are not there and for QLoRA on a mixture of experts.
    """
    try:
        config = AutoConfig.from_pretrained(folder, **SAFE)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except UNREADABLE as error:
        raise RunError(
            "ModelInvalid",
            f"the base model cannot be built: {first_line(error)}; only architectures of transformers itself are"
            " loaded, no code out of a model's repository",
        ) from error
    if method.adapter is not None:
        _check_targets(model, method.adapter)
    if method.qlora is not None and (experts := list(_fused_experts(model))):
        raise RunError(
            "MethodNotApplicable",
            f"qlora is not applicable: {type(model).__name__} is a mixture of experts whose weights ({experts[0]}, …)"
            " are not linear layers and would stay in 16 bits; choose lora",
        )


def _check_targets(model: PreTrainedModel, adapter: Lora) -> None:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    unknown = [t for t in adapter.target_modules if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise RunError(
            "MethodNotApplicable",
            f"targetModules {', '.join(unknown)}: the base model has no such linear layers; it has {', '.join(known)}"
            " (its output layer takes no adapter)",
        )


def _fused_experts(model: nn.Module) -> Iterator[str]:
    """Yield the names of weights of three dimensions: experts, which bitsandbytes leaves as they are."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for name, module in model.named_modules():
        if not isinstance(module, convolutions):
            yield from (f"{name}.{key}" for key, value in module.named_parameters(recurse=False) if value.ndim == 3)


def load(folder: Path, method: Method, compute: Compute) -> PreTrainedModel:
    """Return the base model on its device. Raises RunError (ModelInvalid).

    A full fine-tune keeps its weights in float32 (and computes in `compute.dtype` by autocast): steps of 1e-5 vanish
    in bfloat16's eight bits. Frozen weights need no more than `compute.dtype`.
    """
    wanted: dict[str, Any] = {"dtype": torch.float32 if method.full is not None else compute.dtype}
    if method.qlora is not None:
        wanted["quantization_config"] = _four_bits(method.qlora, compute)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            device_map={"": compute.device},
            output_loading_info=True,
            **wanted,
            **SAFE,
        )
    except UNREADABLE as error:
        if "memory" in str(error):
            raise
        raise RunError("ModelInvalid", f"the base model cannot be loaded: {first_line(error)}") from error
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        # transformers makes them up at random and only logs it.
        raise RunError(
            "ModelInvalid",
            f"the base model's files lack {len(missing)} of its weights ({', '.join(missing[:3])}, …): upload all"
            " .safetensors files that it has, with their index",
        )
    model.config.use_cache = False
    return model


def _four_bits(qlora: QLora, compute: Compute) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type=qlora.quant_type,
        bnb_4bit_use_double_quant=qlora.double_quant,
        bnb_4bit_compute_dtype=compute.dtype,
    )


def quantized(model: PreTrainedModel) -> Quantized:
    """Return how much of a base model is held in 4 bits.

    Raises RunError (MethodNotApplicable) if a linear layer is not that transformers does not mean to leave out.
    """
    packed = _packed(model)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    left_out = [*(model._keep_in_fp32_modules or []), *(model._keep_in_fp32_modules_strict or [])]
    whole = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not isinstance(module, Linear4bit)
        and module is not head
        and not set(left_out) & set(name.split("."))
    ]
    if whole or not packed:
        raise RunError(
            "MethodNotApplicable",
            f"qlora is not applicable: {len(whole)} linear layers of the base model stay in 16 bits"
            f" ({', '.join(whole[:3])}), {len(packed)} are held in 4; choose lora",
        )
    return Quantized(len(packed), 100.0 * sum(packed.values()) / _count(model))


def make_trainable(model: PreTrainedModel, method: Method, compute: Compute) -> Trainable:
    """Return the model with its trained parameters: adapters of `compute.dtype`, or all weights for `full`."""
    four_bits = quantized(model) if method.qlora is not None else None
    total = _count(model)
    adapter = method.adapter
    if adapter is None:
        model.requires_grad_(True)
        return Trainable(model, torch.float32, total, total, None)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        task_type="CAUSAL_LM",
    )
    # peft would train in float32 here and, after a resume of a quantised base, in another type than before.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.to(compute.dtype)
    count = sum(parameter.numel() for parameter in trained)
    return Trainable(adapted, compute.dtype, count, total + count, four_bits)


def _packed(model: nn.Module) -> dict[int, int]:
    """Return the weights held in 4 bits by identity, each with the number of parameters that it stands for.

    They lie packed, two to a byte, so their shape tells nothing; the layer's own sizes do.
    """
    layers = (module for module in model.modules() if isinstance(module, Linear4bit))
    return {id(layer.weight): int(layer.in_features) * int(layer.out_features) for layer in layers}


def _count(model: nn.Module) -> int:
    packed = _packed(model)
    return sum(packed.get(id(parameter), parameter.numel()) for parameter in model.parameters())
