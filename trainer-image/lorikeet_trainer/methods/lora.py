"""LoRA and its variants by peft, over a base of 16 or 4 bits; a LoRA adapter for the untouched base is published."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lorikeet_api.contract import SourceDigest
from lorikeet_api.training import ALL_LINEAR, Adapter, Method, is_named
from lorikeet_run.errors import RunError
from lorikeet_trainer.device import Compute
from lorikeet_trainer.methods.trainable import Trainable, base_name, cast_trained, tensor_names
from lorikeet_trainer.model import REWARD_HEAD, Quantized, head, quantized

_WEIGHTS: Final = "adapter_model.safetensors"


class Lora(Trainable):
    """Low-rank adapters beside frozen weights."""

    model: PeftModel

    def __init__(
        self,
        model: PeftModel,
        dtype: torch.dtype,
        four_bits: Quantized | None,
        initial: Path | None,
        lora_plus_ratio: float | None,
    ) -> None:
        """Take a model with adapters, which are to be of type `dtype`.

        `initial`: folder with the adapter as it was at first, where it is trained in the place of a part of the base.
        `lora_plus_ratio`: learning rate of the second matrix of each adapter over that of the first; None: equal.
        """
        cast_trained(model, dtype)
        super().__init__(model, dtype, four_bits)
        self._initial = initial
        self._lora_plus_ratio = lora_plus_ratio

    def tune(self, optimizer: Optimizer) -> None:
        """Give adapters' second matrices the higher learning rate of LoRA+, if it is wanted.

        peft's own would give it to all vectors, too, and decay norms.
        """
        if self._lora_plus_ratio is None:
            return
        second = {id(parameter) for name, parameter in self.model.named_parameters() if ".lora_B." in name}
        for group in list(optimizer.param_groups):
            faster = [each for each in group["params"] if id(each) in second]
            if faster:
                group["params"] = [each for each in group["params"] if id(each) not in second]
                rate = group["lr"] * self._lora_plus_ratio
                optimizer.add_param_group({**group, "params": faster, "lr": rate})

    def save_checkpoint(self, folder: Path) -> None:
        """Write the adapter as peft does."""
        self._write(folder)

    def _write(self, folder: Path, initial: str | None = None) -> None:
        """Write the adapter, or by how much it differs from the one in the folder `initial`."""
        # "auto" would ask the hub about the base, and could put whole embeddings into the adapter.
        self.model.save_pretrained(
            str(folder),
            # Beside it lies the reference of a run on preferences.
            selected_adapters=["default"],
            save_embedding_layers=False,
            path_initial_model_for_weight_conversion=initial,
        )
        (folder / "README.md").unlink(missing_ok=True)

    def load_checkpoint(self, folder: Path) -> None:
        """Read it in the type in which it is trained: peft would cast it to float32."""
        self.model.load_adapter(str(folder), "default", is_trainable=True, autocast_adapter_dtype=False)

    def begin(self, folder: Path) -> None:
        """Take the weights of a published adapter. Raises RunError (ModelInvalid) if they are those of another one."""
        own = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        with safe_open(folder / _WEIGHTS, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
        differing = [name for name in {**own, **found} if name not in own or found.get(name) != tuple(own[name].shape)]
        if differing:
            raise RunError(
                "ModelInvalid",
                f"the adapter to go on from has other weights than this job trains ({', '.join(differing[:3])}, …):"
                " leave spec.method out of a new job to go on as the earlier one",
            )
        self.load_checkpoint(folder)

    def publish(self, output: Path, base: SourceDigest, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the adapter in peft's layout, for the base as it is published.

        Where it was trained in the place of a part of the base, what is written is the difference: a LoRA adapter of
        twice the rank. Raises RunError (InternalError) if it would hold anything but what its configuration says.
        """
        folder = output / "adapter"
        config: Any = self.model.peft_config["default"]
        config.base_model_name_or_path, config.revision = base_name(base)
        # peft keeps a set, whose order changes from process to process; equal runs publish equal bytes.
        config.target_modules = sorted(config.target_modules)
        if config.modules_to_save is not None:
            # peft notes the head of a reward model each time anew, under each name that it may have.
            own = dict(self.model.named_modules())
            config.modules_to_save = sorted(
                {name for name in config.modules_to_save if any(is_named(each, name) for each in own)}
            )
        less = None if self._initial is None else str(self._initial)
        self._write(folder, less)
        tokenizer.save_pretrained(folder)
        keys = tensor_names(folder / _WEIGHTS)
        known = _keys(config)
        foreign = [key for key in keys if not known.search(key)]
        absent = [name for name in config.modules_to_save or [] if not any(f".{name}." in key for key in keys)]
        if foreign or absent or not keys:
            what = f"{foreign[:3]}, which nobody loads" if foreign else f"nothing of {', '.join(absent) or 'the run'}"
            raise RunError("InternalError", f"the adapter would hold {what}")


def check(model: PreTrainedModel, method: Method) -> None:
    """Raise RunError (MethodNotApplicable) if adapters do not fit a model, of which the shape is enough."""
    adapter = method.adapter
    assert adapter is not None  # noqa: S101 - who calls knows
    _check_targets(model, adapter)
    _check_parts(model, method)
    _check_saved(model, method)
    if method.qlora is not None and (experts := list(_fused_experts(model))):
        raise RunError(
            "MethodNotApplicable",
            f"qlora is not applicable: {type(model).__name__} is a mixture of experts whose weights ({experts[0]}, …)"
            " are not linear layers and would stay in 16 bits; choose lora",
        )


def make_trainable(model: PreTrainedModel, method: Method, compute: Compute, scratch: Path, start: Path | None) -> Lora:
    """Return the base model with adapters, new ones or those in the folder `start`.

    Raises RunError: MethodNotApplicable, or ModelInvalid if those in `start` are not what the method makes.
    They are of `compute.dtype`, but of float32 where what is trained is as large as the base's own weights (DoRA's
    magnitudes, whole layers, parts of the base): usual steps would vanish in bfloat16's eight bits there. And beside a
    base of float16, whose gradients are scaled: torch takes the scale off float32 alone.
    """
    adapter = method.adapter
    assert adapter is not None  # noqa: S101 - who calls knows
    four_bits = quantized(model) if method.qlora is not None else None
    first = _first_weights(method)
    # peft trains its head whole, too.
    rewards = hasattr(model, REWARD_HEAD)
    everywhere = adapter.target_modules == [ALL_LINEAR]
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        # Not peft's "all-linear", of which it publishes each layer's full name.
        target_modules=_last_names(_linear(model)) if everywhere else adapter.target_modules,
        use_rslora=adapter.rs_lora,
        use_dora=adapter.dora,
        # By their full names: peft takes each layer whose name ends so.
        modules_to_save=[name for saved in adapter.modules_to_save for name in _named(model, saved)] or None,
        init_lora_weights=first,
        task_type="SEQ_CLS" if rewards else "CAUSAL_LM",
    )
    # peft would train in float32 here and, after a resume of a quantised base, in another type than before.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    initial = None if first is True else scratch / "initial"
    if initial is not None:
        adapted.save_pretrained(str(initial), save_embedding_layers=False, is_main_process=compute.rank == 0)
    large = adapter.dora or bool(adapter.modules_to_save) or rewards or initial is not None
    dtype = torch.float32 if large or compute.dtype == torch.float16 else compute.dtype
    made = Lora(adapted, dtype, four_bits, initial, adapter.lora_plus_ratio)
    if start is not None:
        made.begin(start)
    return made


def _check_targets(model: PreTrainedModel, adapter: Adapter) -> None:
    if adapter.target_modules == [ALL_LINEAR]:
        return
    linear = _linear(model)
    unknown = [target for target in adapter.target_modules if not any(is_named(name, target) for name in linear)]
    if unknown:
        raise RunError(
            "MethodNotApplicable",
            f"targetModules {', '.join(unknown)}: the base model has no such linear layers: name some of those that it"
            f" has, {', '.join(_last_names(linear))} (its output layer takes no adapter), or {ALL_LINEAR} for all",
        )


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Return a model's linear layers by name, but its output."""
    last = head(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not last
    }


def _targeted(model: PreTrainedModel, adapter: Adapter) -> dict[str, nn.Linear | Conv1D]:
    """Return the layers that get an adapter, by name."""
    everywhere = adapter.target_modules == [ALL_LINEAR]
    return {
        name: module
        for name, module in _linear(model).items()
        if everywhere or any(is_named(name, target) for target in adapter.target_modules)
    }


def _last_names(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _check_parts(model: PreTrainedModel, method: Method) -> None:
    """Check that each layer has as many parts as an adapter is to take its place in."""
    lora = method.lora
    if lora is None or lora.init == "default":
        return
    layers = _targeted(model, lora)
    small = [name for name, layer in layers.items() if min(layer.weight.shape) < lora.rank]
    if small:
        least = min(min(layers[name].weight.shape) for name in small)
        raise RunError(
            "MethodNotApplicable",
            f"init {lora.init} with rank {lora.rank}: {', '.join(_last_names(small))} of the base model have only"
            f" {least} dimensions: lower the rank, or leave them out of targetModules",
        )
    transposed = [name for name, layer in layers.items() if isinstance(layer, Conv1D)]
    if transposed and lora.init == "olora":
        raise RunError(
            "MethodNotApplicable",
            f"init olora: {', '.join(_last_names(transposed))} of the base model hold their weights transposed, which"
            " it does not take: choose pissa, or leave init out",
        )


def _check_saved(model: PreTrainedModel, method: Method) -> None:
    """Check that the layers which are to be trained whole are there, and can be."""
    adapter = method.adapter
    if adapter is None or not adapter.modules_to_save:
        return
    last = head(model)
    modules = dict(model.named_modules())
    targeted = _targeted(model, adapter)
    for saved in adapter.modules_to_save:
        found = {name: modules[name] for name in _named(model, saved)}
        why = None
        if not any(any(True for _ in module.parameters()) for module in found.values()):
            why = "the base model has no such layer with weights of its own; name one as embed_tokens, lm_head or norm"
        elif any(isinstance(module, nn.ModuleList | nn.ModuleDict) for module in found.values()):
            why = "it is a list of layers; name those that are meant"
        elif inside := [each for each in targeted for name in found if f"{each}.".startswith(f"{name}.")]:
            why = f"{inside[0]} in it gets an adapter; leave that out of targetModules"
        elif method.qlora is not None and any(
            isinstance(each, nn.Linear | Conv1D) and each is not last
            for module in found.values()
            for each in module.modules()
        ):
            why = "qlora holds it in 4 bits, in which nothing can be trained whole; choose lora"
        if why is not None:
            raise RunError("MethodNotApplicable", f"modulesToSave {saved}: {why}")


def _named(model: PreTrainedModel, wanted: str) -> list[str]:
    """Return the full names of the layers that are meant by a name."""
    return [name for name, _ in model.named_modules() if name and is_named(name, wanted)]


def _fused_experts(model: nn.Module) -> Iterator[str]:
    """Yield the names of weights of three dimensions: experts, which bitsandbytes leaves as they are."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for name, module in model.named_modules():
        if not isinstance(module, convolutions):
            yield from (f"{name}.{key}" for key, value in module.named_parameters(recurse=False) if value.ndim == 3)


def _first_weights(method: Method) -> Literal[True, "pissa", "olora"]:
    """Return what the adapters begin with, in peft's words."""
    init = "default" if method.lora is None else method.lora.init
    return True if init == "default" else init


def _keys(config: Any) -> re.Pattern[str]:
    """Return what the names of an adapter's tensors look like, by its configuration."""
    kinds = [r"\.lora_[AB]\.weight$"]
    if config.use_dora:
        kinds.append(r"\.lora_magnitude_vector$")
    kinds += [rf"\.{re.escape(name)}\." for name in config.modules_to_save or []]
    return re.compile("|".join(kinds))
