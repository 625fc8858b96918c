"""Every weight of the model is trained, and each rank holds a part of it, of its gradient and its optimiser state.

transformers shares the weights out while it loads them (FSDP2), and its trainer leaves such a model to itself. What is
written is whole, as a run of one rank writes it, so a run may go on with another number of ranks.
"""

from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorikeet_api.contract import RunContract, SourceDigest
from lorikeet_trainer.device import Compute
from lorikeet_trainer.methods.full import WEIGHTS, Full, published_dtype
from lorikeet_trainer.methods.trainable import trained_parameters
from lorikeet_trainer.model import head

_OPTIMIZER: Final = "optimizer.pt"
"""As transformers calls it."""


def shards(contract: RunContract, compute: Compute) -> bool:
    """Return whether the ranks of a run share its weights out: where every weight is trained.

    Not with optimisers of 8 bits, whose kernels know no parts of tensors; nor for rlhf, where each rank writes answers
    at a pace of its own; nor in float16, whose scaled loss is tried with whole gradients alone.
    """
    return (
        contract.method.full is not None
        and compute.ranks > 1
        and contract.objective.rlhf is None
        and contract.training.optimizer in (None, "adamw")
        and compute.dtype != torch.float16
    )


class Sharded(Full):
    """A model all of whose weights are trained, in float32, each rank's part by that rank."""

    is_sharded = True

    def __init__(self, model: PreTrainedModel, folder: Path) -> None:
        """Take a model whose weights are shared out, from the folder in which it lies."""
        super().__init__(model, folder)
        last: Any = head(model)
        if isinstance(last, FSDPModule):
            # Where it is not put together with the last norm: trl computes with its weight, without calling it.
            model.register_forward_pre_hook(lambda *_: last.unshard())

    @property
    def held(self) -> int:
        """Parameters that this rank holds."""
        return sum(local(parameter).numel() for parameter in self.model.parameters())

    def save_checkpoint(self, folder: Path) -> None:
        """Write the weights as they are in memory: the first rank does."""
        weights = self._gathered(self.dtype)
        if dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / WEIGHTS)

    def load_checkpoint(self, folder: Path) -> None:
        """Read this rank's part of them back."""
        with safe_open(folder / WEIGHTS, framework="pt") as file, torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(_part(file.get_tensor(name), tensor))

    def save_optimizer(self, optimizer: Optimizer, folder: Path) -> None:
        """Write the optimiser's state: the first rank does."""
        state = optimizer.state_dict()
        state["state"] = {
            number: {name: _whole(value) for name, value in kept.items()} for number, kept in state["state"].items()
        }
        if dist.get_rank() == 0:
            torch.save(state, folder / _OPTIMIZER)

    def load_optimizer(self, optimizer: Optimizer, folder: Path) -> None:
        """Read this rank's part of it back; no rank holds more than one tensor whole."""
        state = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, kept in state["state"].items():
            like = parameters[number]
            # Nothing of the file stays in use, which is removed once training goes on.
            kept |= {
                name: (_part(value, like) if value.shape == like.shape else value).clone()
                for name, value in kept.items()
            }
        optimizer.load_state_dict(state)

    def finish(self) -> None:
        """Round to the type in which the base was saved; in memory the parts keep their own: FSDP gathers no other."""
        dtype = published_dtype(self._folder)
        with torch.no_grad():
            for parameter in trained_parameters(self.model):
                parameter.copy_(parameter.to(dtype))

    def publish(self, output: Path, base: SourceDigest, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write a whole model: the first rank does, whose model is a whole one from then on."""
        weights = self._gathered(published_dtype(self._folder))
        if dist.get_rank() != 0:
            return
        names = {id(tensor): name for name, tensor in self._tensors().items()}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if isinstance(tensor, DTensor):
                parent, _, own = name.rpartition(".")
                whole = weights[names[id(tensor)]]
                setattr(self.model.get_submodule(parent), own, nn.Parameter(whole, requires_grad=False))
        del self.model.config.distributed_config
        super().publish(output, base, tokenizer)

    def _tensors(self) -> dict[str, Tensor]:
        """Return weights and buffers, one that goes by several names by the first of them."""
        every = sorted(self.model.state_dict(keep_vars=True).items())
        seen = {id(tensor): name for name, tensor in reversed(every)}
        return {name: tensor for name, tensor in every if seen[id(tensor)] == name}

    def _gathered(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return to the first rank all weights whole, in one type, and the buffers; all ranks take part."""
        with torch.no_grad():
            return {
                name: _whole(tensor.to(dtype) if isinstance(tensor, DTensor) else tensor)
                for name, tensor in self._tensors().items()
            }


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(value: Any) -> Any:
    """Return to the first rank a tensor whole, in the processor's memory, and to the others nothing of it."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else None


def _part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a tensor that each rank can read, shared out as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
