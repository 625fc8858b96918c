"""Bottleneck adapters: small modules behind the blocks' parts, trained alone (Houlsby et al., arXiv:1902.00751).

peft has none. No engine serves them; who has the base model loads what is published by `load_adapter`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorikeet_api.base import Model
from lorikeet_api.contract import SourceDigest
from lorikeet_api.training import Bottleneck
from lorikeet_run.errors import RunError
from lorikeet_trainer.methods.trainable import Trainable, base_name

CONFIG: Final = "bottleneck_config.json"
WEIGHTS: Final = "bottleneck.safetensors"
_BEHIND_FEED_FORWARD: Final = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
_BEHIND_ATTENTION: Final = ("self_attn", "attn", "attention", "self_attention")
_PARTS: Final = {
    "pfeiffer": (_BEHIND_FEED_FORWARD,),
    "houlsby": (_BEHIND_ATTENTION, _BEHIND_FEED_FORWARD),
}
"""Names, by placement, of the parts of a block that get an adapter behind them: one of each group."""
_PREFIX: Final = "bottleneck_"


class BottleneckConfig(Model):
    """What an adapter is, beside its weights (`bottleneck_config.json`)."""

    version: Literal["v1"] = "v1"
    """Version of this layout."""
    base_model: str
    """Name of the base model: the hub's, or its URI."""
    base_revision: str | None = None
    """Commit of a model of the hub."""
    settings: Bottleneck
    """Placement and reduction."""

    def write(self, folder: Path) -> None:
        """Write the file."""
        (folder / CONFIG).write_text(self.model_dump_json(by_alias=True, exclude_none=True, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the file's content. Raises ValueError and OSError."""
        return cls.model_validate_json((folder / CONFIG).read_bytes())


class Narrow(nn.Module):
    """Down to a few features, a ReLU, and up again, added to what comes in. It begins as the identity."""

    def __init__(self, width: int, narrow: int) -> None:
        """Take the width of the model and that of the bottleneck."""
        super().__init__()
        self.down = nn.Linear(width, narrow)
        self.up = nn.Linear(narrow, width)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return (batch, length, width) of the same."""
        change: Tensor = self.up(torch.relu(self.down(states.to(self.down.weight.dtype))))
        return states + change.to(states.dtype)


class Bottlenecked(Trainable):
    """A frozen model with adapters behind its parts."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, settings: Bottleneck) -> None:
        """Take a base model, and add the adapters, in float32: usual steps would vanish in bfloat16's eight bits."""
        model.requires_grad_(False)
        attach(model, settings)
        super().__init__(model, torch.float32)
        self._settings = settings

    def save_checkpoint(self, folder: Path) -> None:
        """Write the adapters' weights."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_weights(self.model), folder / WEIGHTS, {"format": "pt"})

    def load_checkpoint(self, folder: Path) -> None:
        """Read them back."""
        _put(self.model, load_file(folder / WEIGHTS))

    def publish(self, output: Path, base: SourceDigest, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write weights, configuration and tokenizer."""
        folder = output / "adapter"
        self.save_checkpoint(folder)
        name, revision = base_name(base)
        BottleneckConfig(base_model=name, base_revision=revision, settings=self._settings).write(folder)
        tokenizer.save_pretrained(folder)


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """Add a published adapter to the base model that it was trained on, and return the model.

    Args:
        model: the base, as `AutoModelForCausalLM.from_pretrained` returns it.
        folder: the folder `adapter/` of a run, with its two files.

    Raises:
        ValueError: if the folder has no adapter, or one of another model, or the model has one already.
    """
    folder = Path(folder)
    try:
        config = BottleneckConfig.read(folder)
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValidationError) as error:
        raise ValueError(f"{folder} has no bottleneck adapter: {error}") from error
    try:
        attach(model, config.settings)
    except RunError as error:
        raise ValueError(error.message) from error
    _put(model, weights)
    for _, parameter in _parameters(model):
        parameter.requires_grad_(False)
    for block in _blocks(model):
        own = next(parameter for name, parameter in block.named_parameters() if _PREFIX not in name)
        for name, module in block.named_children():
            if name.startswith(_PREFIX):
                module.to(own.device, own.dtype)
    return model


def attach(model: PreTrainedModel, settings: Bottleneck) -> None:
    """Add untrained adapters behind the parts that `settings` names, in float32.

    Raises RunError (MethodNotApplicable) if the model has no place for them, or has some already.
    """
    if any(True for _ in _parameters(model)):
        raise _not_applicable(model, "it has such adapters already")
    width = int(model.config.hidden_size)
    device = next(model.parameters()).device
    for block, part in list(_places(model, settings)):
        adapter = Narrow(width, max(1, width // settings.reduction_factor)).to(device)
        block.add_module(f"{_PREFIX}{part}", adapter)
        getattr(block, part).register_forward_hook(_behind(adapter))


def check(model: PreTrainedModel, settings: Bottleneck) -> None:
    """Raise RunError (MethodNotApplicable) if a model has no place for the adapters; its shape is enough."""
    list(_places(model, settings))


def _places(model: PreTrainedModel, settings: Bottleneck) -> Iterator[tuple[nn.Module, str]]:
    """Yield each block with the name of a part of it that gets an adapter behind it."""
    for block in _blocks(model):
        for names in _PARTS[settings.placement]:
            part = next((each for each in names if hasattr(block, each)), None)
            if part is None:
                raise _not_applicable(model, f"its blocks have none of {', '.join(names)}")
            yield block, part


def _blocks(model: PreTrainedModel) -> nn.ModuleList:
    layers = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module
    raise _not_applicable(model, "it has no list of blocks")


def _not_applicable(model: PreTrainedModel, why: str) -> RunError:
    return RunError(
        "MethodNotApplicable", f"bottleneck is not applicable to {type(model).__name__}: {why}; choose lora"
    )


def _behind(adapter: Narrow) -> Any:
    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (adapter(output[0]), *output[1:])
        return adapter(output)

    return hook


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if f".{_PREFIX}" in name:
            yield name, parameter


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in _parameters(model)}


def _put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Raises ValueError if the weights are not those of the model's adapters."""
    own = dict(_parameters(model))
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in weights.items()}:
        raise ValueError(f"{WEIGHTS} has adapters of another model: {len(weights)} tensors, {len(own)} are wanted")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
