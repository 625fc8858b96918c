"""LoRA's variants: each learns, is published for the untouched base, and says whether an engine can serve it."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lorikeet_trainer import loop
from tests.trainer.lab import ADAPTER, ALL_LINEAR, Lab
from tests.trainer.probe import read_back, run_and_probe

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/pretrained", "s3://datasets/train.jsonl"
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
RANK = int(ADAPTER["rank"])
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True)
class Variant:
    """One way to train an adapter, and what is published of it."""

    changes: dict[str, Any]
    """Of the adapter's settings."""
    method: str = "lora"
    rank: int = RANK
    unservable: str = ""
    """A word of the reason why no engine takes it."""
    rate: float = 1e-2
    config: dict[str, Any] = field(default_factory=dict)
    """What peft's configuration says of it."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """In which it is computed."""
    tolerance: float = 0.0
    """By how much the published model may differ from the trained one (logits, of which the largest are about 10)."""

    @property
    def settings(self) -> dict[str, Any]:
        return {self.method: {**ADAPTER, **self.changes}}


VARIANTS = {
    "rsLora": Variant({"rsLora": True}, config={"use_rslora": True}),
    # Trained in float32, and read in the base's bfloat16.
    "dora": Variant({"dora": True}, unservable="dora", config={"use_dora": True}, tolerance=0.3),
    # What is published is a difference: it is exact where arithmetic is.
    "pissa": Variant({"init": "pissa"}, rank=2 * RANK, rate=1e-3, dtype="float32", tolerance=1e-3),
    "olora": Variant({"init": "olora"}, rank=2 * RANK, rate=1e-3, dtype="float32", tolerance=1e-3),
    "pissa with rsLora": Variant(
        {"init": "pissa", "rsLora": True},
        rank=2 * RANK,
        rate=1e-3,
        config={"use_rslora": True},
        dtype="float32",
        tolerance=1e-3,
    ),
    "pissa in bfloat16": Variant({"init": "pissa"}, rank=2 * RANK, rate=1e-3, tolerance=0.2),
    "loraPlus": Variant({"loraPlusRatio": 4.0}, rate=5e-3),
    "all-linear": Variant({"targetModules": ["all-linear"]}, config={"target_modules": sorted(ALL_LINEAR)}),
    "modulesToSave": Variant(
        {"targetModules": ATTENTION, "modulesToSave": ["embed_tokens"]},
        unservable="embed_tokens",
        config={"modules_to_save": ["model.embed_tokens"]},
        tolerance=0.3,
    ),
    "all of them on 4 bits": Variant(
        {
            "rsLora": True,
            "dora": True,
            "loraPlusRatio": 2.0,
            "targetModules": ["all-linear"],
            "modulesToSave": ["embed_tokens"],
        },
        method="qlora",
        unservable="dora",
        rate=5e-3,
        config={"use_dora": True, "use_rslora": True, "target_modules": sorted(ALL_LINEAR)},
        tolerance=0.5,
    ),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_a_variant_learns_and_is_published_for_the_untouched_base(
    lab: Lab, variant: Variant, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if variant.dtype == "float32":
        request.getfixturevalue("float32")
    training = {"epochs": 12, "evalSteps": 1000, "learningRate": variant.rate}
    contract = lab.contract(variant.settings, MODEL, TRAIN, dataset=HELD_OUT, training=training)
    run = run_and_probe(lab, contract)
    assert run.metrics.eval_loss is not None
    assert run.metrics.base_eval_loss is not None
    assert run.metrics.eval_loss < 0.4 * run.metrics.base_eval_loss
    manifest = lab.manifest(contract)
    assert manifest.rank == variant.rank
    assert manifest.servable.lora == (not variant.unservable)
    assert variant.unservable in (manifest.servable.reason or "")
    config = json.loads(lab.fetch(contract, "adapter/adapter_config.json"))
    assert {**config, **variant.config} == config
    assert (config["r"], config["init_lora_weights"]) == (variant.rank, True)
    read = read_back(lab, contract, lab.root / "pretrained", tmp_path, variant.dtype)
    torch.testing.assert_close(read, run.logits, rtol=0, atol=variant.tolerance)


def test_the_second_matrix_learns_faster_by_the_ratio(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[loop.Guarded] = []
    real = loop.adopt

    def kept(trainer: loop.Guarded, *given: Any) -> None:
        seen.append(trainer)
        real(trainer, *given)

    monkeypatch.setattr(loop, "adopt", kept)
    training = {"maxSteps": 1, "scheduler": "constant", "learningRate": 1e-3, "weightDecay": 0.1}
    settings = {"lora": {**ADAPTER, "loraPlusRatio": 8.0}}
    assert lab.run(lab.contract(settings, MODEL, TRAIN, training=training)).exit_code == 0
    (trainer,) = seen
    assert trainer.optimizer is not None
    assert isinstance(trainer.model, PeftModel)
    rates = {id(each): group["lr"] for group in trainer.optimizer.param_groups for each in group["params"]}
    names = {name: rates[id(each)] for name, each in trainer.model.named_parameters() if each.requires_grad}
    assert {rate for name, rate in names.items() if "lora_A" in name} == {1e-3}
    assert {rate for name, rate in names.items() if "lora_B" in name} == {8e-3}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups if group["params"]} == {0.1}


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"dora": True}, "lora_magnitude_vector"), ({"modulesToSave": ["norm"]}, "modules_to_save.default.weight")],
    ids=["magnitudes", "norms"],
)
def test_what_is_as_large_as_the_bases_weights_is_moved_by_usual_steps(
    lab: Lab, changes: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 a step of 2e-4 would leave a magnitude of 1 as it is."""
    before: dict[str, torch.Tensor] = {}
    after: dict[str, torch.Tensor] = {}
    real = loop.fit

    def watched(trainer: loop.Guarded, *given: Any) -> loop.TrainingOutcome:
        own = {key: each for key, each in trainer.trainable.model.named_parameters() if name in key}
        before.update({key: each.detach().clone() for key, each in own.items()})
        outcome = real(trainer, *given)
        after.update({key: each.detach().clone() for key, each in own.items()})
        return outcome

    monkeypatch.setattr(loop, "fit", watched)
    training = {"maxSteps": 4, "learningRate": 2e-4}
    assert lab.run(lab.contract({"lora": {**ADAPTER, **changes}}, MODEL, TRAIN, training=training)).exit_code == 0
    assert before
    for key, weight in after.items():
        assert (weight != before[key]).float().mean() > 0.9, key


def test_a_layer_is_saved_by_its_whole_name(lab: Lab) -> None:
    """peft alone would take every layer whose name ends in norm."""
    settings = {"lora": {**ADAPTER, "modulesToSave": ["norm"]}}
    contract = lab.contract(settings, MODEL, TRAIN, training={"maxSteps": 1})
    assert lab.run(contract).exit_code == 0
    path = lab.root / "saved.safetensors"
    path.write_bytes(lab.fetch(contract, "adapter/adapter_model.safetensors"))
    whole = [key for key in load_file(path) if "lora_" not in key]
    assert whole == ["base_model.model.model.norm.weight"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora": {"modulesToSave": ["embeddings"]}}, "modulesToSave embeddings: the base model has no such layer"),
        ({"lora": {"modulesToSave": ["rotary_emb"]}}, "rotary_emb: the base model has no such layer with weights"),
        ({"lora": {"modulesToSave": ["layers"]}}, "modulesToSave layers: it is a list of layers"),
        ({"lora": {"modulesToSave": ["self_attn"]}}, "q_proj in it gets an adapter; leave that out of targetModules"),
        ({"qlora": {"modulesToSave": ["mlp"]}}, "modulesToSave mlp: qlora holds it in 4 bits"),
        ({"lora": {"init": "pissa", "dropout": 0, "rank": 64}}, "k_proj, v_proj of the base model have only 32"),
        ({"lora": {"init": "olora", "dropout": 0, "rank": 64}}, "lower the rank"),
    ],
    ids=[
        "unknown",
        "without weights",
        "a list",
        "with an adapter in it",
        "in 4 bits",
        "few parts",
        "few parts of olora",
    ],
)
def test_what_does_not_fit_the_model_is_refused(lab: Lab, settings: dict[str, Any], words: str) -> None:
    record = lab.run(lab.contract(settings, MODEL, TRAIN, training={"maxSteps": 1})).record
    assert record is not None
    assert record.reason == "MethodNotApplicable"
    assert words in record.message
