"""What all methods have in common."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorikeet_api.contract import SourceDigest
from lorikeet_trainer.model import Quantized, count


class Trainable(ABC):
    """A model ready to be trained; how what is trained of it is kept on the way, and published."""

    is_sharded: ClassVar[bool] = False
    """Whether each rank holds only a part of each weight: then all of them take part where any are written."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, dtype: torch.dtype, quantized: Quantized | None = None
    ) -> None:
        """Take a model whose trained parameters require gradients and are of type `dtype`."""
        self.model = model
        self.dtype = dtype
        """Of every trained parameter."""
        self.quantized = quantized
        """How much of the base is held in 4 bits."""
        self.trained = sum(parameter.numel() for parameter in trained_parameters(model))
        """Trained parameters."""
        self.total = count(model)
        """All parameters."""

    @property
    def held(self) -> int:
        """Parameters that this rank holds."""
        return self.total

    def tune(self, optimizer: Optimizer) -> None:  # noqa: B027 - most methods have one learning rate
        """Give trained parameters learning rates of their own, in the optimiser as it is before the first step."""

    @abstractmethod
    def save_checkpoint(self, folder: Path) -> None:
        """Write the trained weights alone, exactly as they are in memory."""

    @abstractmethod
    def load_checkpoint(self, folder: Path) -> None:
        """Read what `save_checkpoint` has written."""

    def finish(self) -> None:
        """Bring the trained weights into the type in which they are published: the last evaluation is of that."""
        cast_trained(self.model, self.dtype)

    @abstractmethod
    def publish(self, output: Path, base: SourceDigest, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write below `output` what a stranger and an engine read."""


def base_name(base: SourceDigest) -> tuple[str, str | None]:
    """Return the name and the revision by which others load the base: the hub's, or the source's URI."""
    return base.uri.removeprefix("hf://").rstrip("/"), base.revision


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def cast_trained(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring all trained parameters into one type."""
    for parameter in trained_parameters(model):
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def tensor_names(path: Path) -> list[str]:
    """Return the names in a safetensors file, from its header alone (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        names = json.loads(file.read(size))
    return [name for name in names if name != "__metadata__"]
