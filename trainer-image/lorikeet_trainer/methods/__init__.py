"""How the weights are changed, one file each: what is added to the base, how it is kept on the way and published."""

from pathlib import Path

from transformers import PreTrainedModel

from lorikeet_api.training import Method
from lorikeet_trainer.device import Compute
from lorikeet_trainer.methods import bottleneck, full, lora, sharded
from lorikeet_trainer.methods.sharded import shards
from lorikeet_trainer.methods.trainable import Trainable

__all__ = ["Trainable", "check", "make_trainable", "shards"]


def check(model: PreTrainedModel, method: Method) -> None:
    """Raise RunError (MethodNotApplicable) if a method does not fit a model, of which the shape is enough."""
    if method.bottleneck is not None:
        bottleneck.check(model, method.bottleneck)
    elif method.adapter is not None:
        lora.check(model, method)


def make_trainable(
    model: PreTrainedModel,
    method: Method,
    compute: Compute,
    folder: Path,
    scratch: Path,
    start: Path | None = None,
    *,
    is_sharded: bool = False,
) -> Trainable:
    """Return the base model with what is trained of it. Raises RunError (MethodNotApplicable, ModelInvalid).

    Args:
        model: the base model, loaded.
        method: what is trained of it.
        compute: where, and in which precision.
        folder: where the base model came from.
        scratch: for files that are of use until the run has ended.
        start: folder of the LoRA adapter that the run begins with, if it is not a new one.
        is_sharded: whether the base model's weights are shared out over the ranks.
    """
    if method.bottleneck is not None:
        return bottleneck.Bottlenecked(model, method.bottleneck)
    if method.adapter is not None:
        return lora.make_trainable(model, method, compute, scratch, start)
    return sharded.Sharded(model, folder) if is_sharded else full.Full(model, folder)
