"""What a run computes with: what its request names, else what suits method, model and hardware."""

from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils.import_utils import is_flash_attn_2_available

from lorikeet_api.objectives import Objective
from lorikeet_api.training import Attention, Kernels, Method, Optimizer, Precision
from lorikeet_run.errors import RunError
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_trainer.device import Compute
from lorikeet_trainer.methods import Trainable

OPTIMIZERS: Final[dict[Optimizer, str]] = {
    "adamw": "adamw_torch",
    "adamw8bit": "adamw_8bit",
    "pagedAdamw8bit": "paged_adamw_8bit",
}
"""How transformers calls them."""
_FUSED: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures alike in their parts, by their names in a model's config, whose parts Liger's kernels take over."""
ATTENTION: Final[dict[Attention, str]] = {"eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}
"""How transformers calls them."""


@dataclass(frozen=True)
class Chosen:
    """What the run is told to have computed with: fields of `Metrics`."""

    optimizer: Optimizer
    precision: Precision
    attention: str
    kernels: Kernels
    micro_batch_size: int


def chosen(
    hyper: Hyperparameters, compute: Compute, method: Method, objective: Objective, trainable: Trainable
) -> Chosen:
    """Return what a run computes with, once its model is loaded."""
    own = str(trainable.model.config._attn_implementation)
    return Chosen(
        optimizer=_optimizer(hyper.optimizer, compute, quantised=trainable.quantized is not None),
        precision=compute.precision,
        attention=next((name for name, theirs in ATTENTION.items() if theirs == own), own),
        kernels=kernels(hyper.kernels, compute, method, objective, trainable.model.config),
        micro_batch_size=hyper.micro_batch_size,
    )


def _optimizer(asked: Optimizer | None, compute: Compute, *, quantised: bool) -> Optimizer:
    optimizer = asked or ("pagedAdamw8bit" if quantised and compute.on_gpu else "adamw")
    return "adamw8bit" if optimizer == "pagedAdamw8bit" and not compute.on_gpu else optimizer


def attention(asked: Attention | None, compute: Compute) -> str | None:
    """Return what transformers is to load the model with; None: what it has.

    Raises RunError (InvalidContract) for flash where it is not to be had.
    """
    if asked is None:
        return None
    why = None
    if asked == "flash" and not compute.on_gpu:
        why = "it needs a GPU, and the run has none"
    elif asked == "flash" and compute.precision == "fp32":
        why = "it computes in 16 bits, and the precision is fp32"
    elif asked == "flash" and not is_flash_attn_2_available():
        why = "the trainer's image has no package flash-attn: name an image that has it (compute.image)"
    if why is not None:
        raise RunError("InvalidContract", f"training.attention flash: {why}; or choose sdpa")
    return ATTENTION[asked]


def kernels(
    asked: Kernels | None, compute: Compute, method: Method, objective: Objective, config: PreTrainedConfig
) -> Kernels:
    """Return what computes the parts between the linear layers of a model with this configuration.

    Chosen is Liger where it was measured (bench/README.md). Raises RunError (InvalidContract, MethodNotApplicable) for
    it where it is not to be had.
    """
    if asked == "torch":
        return asked
    why = _no_liger(objective, config)
    if asked is None:
        return "liger" if compute.on_gpu and method.lora is not None and why is None else "torch"
    if not compute.on_gpu:
        raise RunError("InvalidContract", "training.kernels liger: it needs a GPU, and the run has none; choose torch")
    if why is not None:
        raise RunError("MethodNotApplicable", f"training.kernels liger: {why}; choose torch")
    return asked


def _no_liger(objective: Objective, config: PreTrainedConfig) -> str | None:
    """Return why Liger's kernels are not for a model; None if they are.

    It would put its feed-forward part, which is one with SiLU, into models with another; and it changes transformers'
    classes, too, of which the reward models beside a run of rlhf are made.
    """
    if config.model_type not in _FUSED:
        return f"Lorikeet uses it for {', '.join(_FUSED)}, and the base model's architecture is {config.model_type}"
    if config.hidden_act != "silu":
        return f"the base model's activation is {config.hidden_act}, its is silu"
    if objective.reward is not None or objective.rlhf is not None:
        return f"it is not for objective {objective.name}"
    return None


def fuse(model: PreTrainedModel) -> None:
    """Have Liger's kernels compute what they can of a model; the loss is computed by each objective's own trainer."""
    apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})  # type: ignore[no-untyped-call]
