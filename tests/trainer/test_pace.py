"""What a run computes with, by its request and by choice: seen on what it computes, and named in its figures."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch.nn import functional
from transformers import GPT2Config, LlamaConfig

from lorikeet_api.objectives import Objective
from lorikeet_api.training import Method
from lorikeet_run.errors import RunError
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_trainer import chosen, device, loop, methods, model
from lorikeet_trainer.device import Compute
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, GPUS, METHODS, Lab, open_lab
from tests.trainer.probe import run_and_probe

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model with random weights."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        yield made


def refusal(lab: Lab, **training: Any) -> str:
    """Return why a run is refused."""
    result = lab.run(lab.contract("lora", MODEL, TRAIN, training=training))
    assert result.record is not None
    assert (result.exit_code, result.record.reason) == (64, "InvalidContract")
    return result.record.message


@dataclass(frozen=True)
class Case:
    """A request on a CPU, and what is to be seen of it."""

    asked: dict[str, str]
    flags: set[str]
    """The CPU's features."""
    named: tuple[str, str, str]
    """Precision, optimiser and attention in the figures."""
    weights: torch.dtype
    """Of what is trained and published."""
    moments: torch.dtype
    """Of the optimiser's state."""


BF16 = {"avx512_bf16"}
CASES = {
    "chosen with bfloat16": Case({}, BF16, ("bf16", "adamw", "sdpa"), torch.bfloat16, torch.bfloat16),
    "chosen without": Case({}, set(), ("fp32", "adamw", "sdpa"), torch.float32, torch.float32),
    "asked for": Case(
        {"precision": "fp32", "optimizer": "adamw8bit", "attention": "eager"},
        BF16,
        ("fp32", "adamw8bit", "eager"),
        torch.float32,
        torch.uint8,
    ),
    "asked for what the CPU has by half": Case(
        {"precision": "bf16", "optimizer": "pagedAdamw8bit", "attention": "sdpa"},
        set(),
        ("bf16", "adamw8bit", "sdpa"),
        torch.bfloat16,
        torch.uint8,
    ),
}


@pytest.mark.usefixtures("any_precision")
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_run_computes_with_what_it_names(lab: Lab, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    optimizers: list[torch.optim.Optimizer] = []
    fused: list[int] = []
    attend = functional.scaled_dot_product_attention

    def tuned(self: Any, optimizer: torch.optim.Optimizer) -> None:
        optimizers.append(optimizer)

    def counted(*given: Any, **more: Any) -> torch.Tensor:
        fused.append(1)
        return attend(*given, **more)

    monkeypatch.setattr(device, "_cpu_flags", lambda: case.flags)
    monkeypatch.setattr(methods.lora.Lora, "tune", tuned)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    # Smaller matrices have no moments of 8 bits.
    method = {"lora": {**ADAPTER, "rank": 64}}
    run = run_and_probe(lab, lab.contract(method, MODEL, TRAIN, training={"maxSteps": 1, **case.asked}))
    assert (run.metrics.precision, run.metrics.optimizer, run.metrics.attention) == case.named
    weights = load(lab.fetch(run.contract, "adapter/adapter_model.safetensors"))
    assert {each.dtype for each in weights.values()} == {case.weights}
    held = [each for state in optimizers[0].state.values() for each in state.values() if isinstance(each, torch.Tensor)]
    assert {each.dtype for each in held if each.numel() >= 64 * 64} == {case.moments}
    assert bool(fused) == (case.named[2] == "sdpa")


def test_a_quantised_base_on_a_gpu_gets_an_optimizer_that_pages() -> None:
    gpu, cpu = Compute(GPU, torch.bfloat16, 0, 1), Compute(CPU, torch.bfloat16, 0, 1)
    assert chosen._optimizer(None, gpu, quantised=True) == "pagedAdamw8bit"
    assert chosen._optimizer("adamw", gpu, quantised=True) == "adamw"
    assert chosen._optimizer(None, gpu, quantised=False) == chosen._optimizer(None, cpu, quantised=True) == "adamw"


def test_what_is_trained_beside_a_base_of_float16_is_float32(lab: Lab, tmp_path: Path) -> None:
    """Gradients are scaled, and torch takes the scale off those of float32 alone."""
    compute = Compute(CPU, torch.float16, 0, 1)
    method, folder = Method.model_validate(METHODS["lora"]), lab.root / "small"
    base = model.load(folder, method, Objective.model_validate({"sft": {}}), compute)
    trainable = methods.make_trainable(base, method, compute, folder, tmp_path)
    assert base.get_input_embeddings().weight.dtype == torch.float16
    assert {each.dtype for each in trainable.model.parameters() if each.requires_grad} == {torch.float32}
    hyper = Hyperparameters.of(lab.contract("lora", MODEL, TRAIN))
    made = loop.arguments(hyper, compute, optim="adamw_torch", steps=1, scratch=tmp_path)
    assert (made["fp16"], made["bf16"], compute.autocast) == (True, False, torch.float16)


def test_a_precision_that_the_hardware_does_not_have_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "precision fp16: it needs a GPU" in refusal(lab, precision="fp16")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(RunError, match="Tesla T4 has no bfloat16; choose fp16 or fp32"):
        device._dtype("bf16", GPU, has_bf16=False)
    assert device._dtype("fp16", GPU, has_bf16=False) == torch.float16
    assert device._dtype(None, GPU, has_bf16=False) == torch.float32, "float16 is chosen for nobody"


def test_liger_is_chosen_for_lora_on_a_gpu_where_it_computes_what_the_model_does() -> None:
    lora, qlora = (Method.model_validate(METHODS[name]) for name in ("lora", "qlora"))
    gpu, cpu = Compute(GPU, torch.bfloat16, 0, 1), Compute(CPU, torch.bfloat16, 0, 1)
    sft, reward = (Objective.model_validate({name: {}}) for name in ("sft", "reward"))
    llama = LlamaConfig()
    assert chosen.kernels(None, gpu, lora, sft, llama) == "liger"
    assert chosen.kernels("liger", gpu, qlora, sft, llama) == "liger"
    assert chosen.kernels("torch", gpu, lora, sft, llama) == "torch"
    assert chosen.kernels(None, gpu, qlora, sft, llama) == "torch", "where it was not measured"
    assert chosen.kernels(None, cpu, lora, sft, llama) == "torch"
    for objective, config, why in (
        (sft, GPT2Config(), "Lorikeet uses it for llama, .*, and the base model's architecture is gpt2; choose torch"),
        (sft, LlamaConfig(hidden_act="relu"), "the base model's activation is relu, its is silu; choose torch"),
        (reward, llama, "it is not for objective reward; choose torch"),
    ):
        assert chosen.kernels(None, gpu, lora, objective, config) == "torch"
        with pytest.raises(RunError, match=why):
            chosen.kernels("liger", gpu, lora, objective, config)


def test_a_run_fuses_what_it_is_to_compute_with_liger(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[Any] = []
    monkeypatch.setattr(chosen, "kernels", lambda asked, *_: asked or "torch")
    monkeypatch.setattr(chosen, "fuse", fused.append)
    for asked in ({"kernels": "liger"}, {}):
        result = lab.run(lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 1, **asked}))
        assert result.exit_code == 0
    assert [type(each).__name__ for each in fused] == ["LlamaForCausalLM"]


FUSE = """
import sys
from transformers import AutoModelForCausalLM
from lorikeet_trainer import chosen
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
chosen.fuse(model)
print(*(name for name, part in model.named_modules() if "liger" in part.forward.__func__.__module__))
"""


def test_liger_takes_the_place_of_norms_and_feed_forward_parts(lab: Lab) -> None:
    """In a process of its own: it changes transformers' classes, too."""
    command = [sys.executable, "-c", FUSE, str(lab.root / "small")]
    fused = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split()
    assert {*fused} >= {"model.norm", "model.layers.0.mlp", "model.layers.1.input_layernorm"}


@pytest.mark.skipif(GPUS == 0, reason="its kernels need a GPU")
def test_fused_kernels_change_no_loss(lab: Lab) -> None:
    by = {}
    for kernels in ("torch", "liger"):
        run = lab.run(lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 2, "kernels": kernels}))
        assert run.record is not None
        assert run.record.metrics is not None
        assert run.record.metrics.kernels == kernels
        by[kernels] = run.record.metrics.train_loss
    assert by["liger"] == pytest.approx(by["torch"], rel=1e-2)


def test_kernels_of_gpus_are_refused_on_a_cpu(lab: Lab) -> None:
    assert "training.kernels liger: it needs a GPU" in refusal(lab, kernels="liger")


def test_flash_attention_is_refused_where_it_is_not_to_be_had(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "attention flash: it needs a GPU" in refusal(lab, attention="flash")
    gpu = Compute(GPU, torch.bfloat16, 0, 1)
    with pytest.raises(RunError, match="no package flash-attn: name an image that has it"):
        chosen.attention("flash", gpu)
    with pytest.raises(RunError, match="the precision is fp32"):
        chosen.attention("flash", Compute(GPU, torch.float32, 0, 1))
    monkeypatch.setattr(chosen, "is_flash_attn_2_available", lambda: True)
    assert chosen.attention("flash", gpu) == "flash_attention_2"
