"""What a run needs of a GPU's memory, estimated before there is a GPU: from config.json and the size of the weights.

An estimate for rows that are all `dataset.maxLength` long: weights, training state, activations, logits, and what CUDA
and libraries take. It is for decoders whose blocks are attention and a feed-forward part; with others (mixtures of
experts among them) nothing is said. tests/unit/run/test_memory.py holds it against measured figures.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

from lorikeet_api.contract import RunContract
from lorikeet_api.training import ALL_LINEAR, Adapter, Bottleneck
from lorikeet_run.hyperparameters import Hyperparameters

GIB: Final = 1 << 30
CONTEXT_BYTES: Final = 800_000_000
"""CUDA's context, the libraries' workspaces, what lies between allocations."""
LOGIT_BYTES: Final = 10
"""For each token and entry of the vocabulary: logits in 16 bits, in 32, and their gradient."""
ADAM_BYTES: Final = 16
"""For each trained float32 parameter: itself, its gradient, and Adam's two states."""
ADAM_8BIT_BYTES: Final = 10
NF4_BYTES: Final = 0.5625
"""For each parameter in 4 bits, with one float32 constant for 64 of them."""
NF4_DOUBLE_BYTES: Final = 0.516
"""The same, with these constants in 8 bits (QLoRA, arXiv:2305.14314, section 3)."""


@dataclass(frozen=True)
class Decoder:
    """A model in figures."""

    parameters: int
    layers: int
    hidden: int
    feed_forward: int
    queries: int
    """Features of all query heads."""
    keys: int
    """Features of all key heads, as of all value heads."""
    vocabulary: int
    embeddings: int
    """Parameters of embedding and output layer."""

    @classmethod
    def of(cls, config: dict[str, Any], weight_bytes: int) -> Self | None:
        """Read it from a config.json and the bytes of its weights; None if the former does not tell."""
        config = config.get("text_config", config)
        if any("experts" in name for name in config):
            return None
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head = int(config.get("head_dim") or hidden // heads)
            vocabulary = int(config["vocab_size"])
            tied = bool(config.get("tie_word_embeddings", True))
            dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
            return cls(
                parameters=weight_bytes // (4 if dtype.endswith("float32") else 2),
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                feed_forward=int(config["intermediate_size"]),
                queries=heads * head,
                keys=int(config.get("num_key_value_heads") or heads) * head,
                vocabulary=vocabulary,
                embeddings=vocabulary * hidden * (1 if tied else 2),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def features(self, module: str) -> int:
        """Return the inputs and outputs of one layer's linear module, by the last part of its name."""
        attention = {"q_proj": self.queries, "k_proj": self.keys, "v_proj": self.keys, "o_proj": self.queries}
        return self.hidden + attention.get(module.rpartition(".")[2], self.feed_forward)

    def all_linear(self) -> int:
        """Return the inputs and outputs of a layer's linear modules."""
        modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        return sum(map(self.features, modules))


def estimate(contract: RunContract, model: Decoder) -> int:
    """Return the bytes that a run needs of each GPU, at the smallest micro batch where it is to find its own.

    Reward models beside a run of rlhf are not counted.
    """
    hyper = Hyperparameters.of(contract)
    micro = 1 if hyper.tries_micro_batch else hyper.micro_batch_size
    tokens = micro * _sequences(contract) * _length(contract)
    state = _state(contract, hyper, model)
    return int(state + tokens * (_activations(hyper, model) + LOGIT_BYTES * model.vocabulary) + CONTEXT_BYTES)


def _sequences(contract: RunContract) -> int:
    """Return the sequences of an example: pairs are computed side by side, and kto has as many of other prompts."""
    return 1 if contract.objective.name in ("sft", "rlhf") else 2


def _length(contract: RunContract) -> int:
    rlhf = contract.objective.rlhf
    return contract.dataset.max_length + (rlhf.max_completion_length if rlhf is not None else 0)


def _state(contract: RunContract, hyper: Hyperparameters, model: Decoder) -> float:
    """Return the bytes of weights, gradients and the optimiser's state."""
    method = contract.method
    width = 4 if hyper.precision == "fp32" else 2
    if method.full is not None:
        each = ADAM_BYTES if hyper.optimizer in (None, "adamw") else ADAM_8BIT_BYTES
        rlhf = contract.objective.rlhf
        held_to = 4 if rlhf is not None and rlhf.beta else 0
        shared = hyper.ranks if rlhf is None and each == ADAM_BYTES and hyper.precision != "fp16" else 1
        return model.parameters * (each + held_to) / shared
    if method.bottleneck is not None:
        return model.parameters * width + ADAM_BYTES * _bottleneck(method.bottleneck, model)
    adapter = method.adapter
    assert adapter is not None  # noqa: S101 - one of four
    trained = ADAM_BYTES // 2 * _low_rank(adapter, model)
    # Whole layers are embedding or output as a rule, and no other is larger.
    trained += ADAM_BYTES * len(adapter.modules_to_save) * model.vocabulary * model.hidden
    if method.qlora is None:
        return model.parameters * width + trained
    packed = NF4_DOUBLE_BYTES if method.qlora.double_quant else NF4_BYTES
    unpacked = model.hidden * model.feed_forward  # one layer at a time
    return packed * (model.parameters - model.embeddings) + width * (model.embeddings + unpacked) + trained


def _low_rank(adapter: Adapter, model: Decoder) -> int:
    """Return the parameters of an adapter."""
    if adapter.target_modules == [ALL_LINEAR]:
        return adapter.rank * model.all_linear() * model.layers
    return adapter.rank * sum(map(model.features, adapter.target_modules)) * model.layers


def _bottleneck(method: Bottleneck, model: Decoder) -> int:
    """Return the parameters of bottleneck adapters."""
    one = 2 * model.hidden * max(1, model.hidden // method.reduction_factor)
    return one * model.layers * (2 if method.placement == "houlsby" else 1)


def _activations(hyper: Hyperparameters, model: Decoder) -> int:
    """Return the bytes that the backward pass needs of each token: of one block and each block's input where
    activations are computed again, else of all blocks."""
    block = 16 * model.hidden + 8 * model.feed_forward + 4 * model.keys
    again = hyper.activation_checkpointing is not False
    return 2 * model.hidden * model.layers + block if again else block * model.layers
