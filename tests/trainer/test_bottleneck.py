"""Bottleneck adapters: small, trained alone, read back by one call; no engine is offered them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lorikeet_api.training import Bottleneck
from lorikeet_trainer.methods.bottleneck import attach, load_adapter
from tests.trainer import tiny
from tests.trainer.lab import Lab
from tests.trainer.probe import PROBE, Run, run_and_probe

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/pretrained", "s3://datasets/train.jsonl"
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}


@pytest.fixture(scope="module", params=["pfeiffer", "houlsby"])
def learned(request: pytest.FixtureRequest, lab: Lab) -> Run:
    """Twelve epochs of adapters a quarter as wide as the model."""
    method = {"bottleneck": {"reductionFactor": 4, "placement": request.param}}
    contract = lab.contract(method, MODEL, TRAIN, dataset=HELD_OUT, training={"epochs": 12, "evalSteps": 1000})
    return run_and_probe(lab, contract)


@pytest.fixture
def published(lab: Lab, learned: Run, tmp_path: Path) -> Path:
    """The published adapter, downloaded."""
    for name in lab.published(learned.contract):
        if name.startswith("adapter/"):
            (tmp_path / Path(name).name).write_bytes(lab.fetch(learned.contract, name))
    return tmp_path


def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def test_it_learns(learned: Run) -> None:
    assert learned.metrics.eval_loss is not None
    assert learned.metrics.base_eval_loss is not None
    assert learned.metrics.eval_loss < 0.4 * learned.metrics.base_eval_loss


def test_only_the_adapters_are_trained_and_published(lab: Lab, learned: Run, published: Path) -> None:
    # Of each: 64 -> 16 -> 64 features, with biases; one or two in each of two blocks.
    one = 64 * 16 + 16 + 16 * 64 + 64
    settings = learned.contract.method.bottleneck
    assert settings is not None
    count = 2 * (2 if settings.placement == "houlsby" else 1)
    weights = load_file(published / "bottleneck.safetensors")
    assert sum(each.numel() for each in weights.values()) == learned.metrics.trainable_parameters == count * one
    names = {path.name for path in published.iterdir()}
    assert names >= {"bottleneck.safetensors", "bottleneck_config.json", "tokenizer.json"}
    assert not any("adapter_model" in name for name in names)
    manifest = lab.manifest(learned.contract)
    assert (manifest.kind, manifest.rank, manifest.servable.lora) == ("adapter", None, False)
    assert "bottleneck" in (manifest.servable.reason or "")


def test_one_call_reads_back_the_model_that_was_trained(lab: Lab, learned: Run, published: Path) -> None:
    model = base(lab.root / "pretrained")
    with torch.inference_mode():
        before = model(input_ids=PROBE).logits.float()
        adapted = load_adapter(model, published)
        with torch.autocast("cpu", torch.bfloat16):  # as accelerate wraps it
            after = adapted(input_ids=PROBE).logits.float()
    torch.testing.assert_close(after, learned.logits, rtol=0, atol=0)
    assert not torch.equal(before, after)


def test_untrained_adapters_change_nothing(lab: Lab) -> None:
    model = base(lab.root / "pretrained")
    with torch.inference_mode():
        before = model(input_ids=PROBE).logits
        attach(model, Bottleneck(placement="houlsby"))
        assert torch.equal(model(input_ids=PROBE).logits, before)


@pytest.mark.parametrize(("placement", "low", "high"), [("pfeiffer", 0.7, 1.3), ("houlsby", 1.5, 2.5)])
def test_a_sixteenth_of_the_width_trains_about_one_percent(placement: Any, low: float, high: float) -> None:
    """In the proportions of a Llama of 7B."""
    with torch.device("meta"):
        config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
        model = LlamaForCausalLM(config)
        total = sum(each.numel() for each in model.parameters())
        attach(model, Bottleneck(placement=placement))
    added = sum(each.numel() for each in model.parameters()) - total
    assert low < 100 * added / total < high


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_read_in_the_type_of_the_base(lab: Lab, published: Path, learned: Run, dtype: torch.dtype) -> None:
    model = load_adapter(AutoModelForCausalLM.from_pretrained(lab.root / "pretrained", dtype=dtype), published)
    with torch.inference_mode():
        read = model(input_ids=PROBE).logits
    assert read.dtype == dtype
    torch.testing.assert_close(read.float(), learned.logits, rtol=0, atol=0.3)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with pytest.raises(ValueError, match="it has such adapters already"):
        load_adapter(model, published)


def test_an_adapter_of_another_model_is_refused(lab: Lab, published: Path, tmp_path: Path) -> None:
    wider = tiny.write_model(tmp_path / "wider", hidden_size=128)
    with pytest.raises(ValueError, match="adapters of another model"):
        load_adapter(base(wider), published)
    config = json.loads((published / "bottleneck_config.json").read_text())
    (published / "bottleneck_config.json").write_text(json.dumps({**config, "version": "v2"}))
    with pytest.raises(ValueError, match="has no bottleneck adapter"):
        load_adapter(base(lab.root / "pretrained"), published)
