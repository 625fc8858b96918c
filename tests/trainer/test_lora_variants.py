"""LoRA's variants: each learns, is published for the untouched base, and says whether an engine can serve it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel

from lorikeet_trainer import sft
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, ALL_LINEAR, Lab, open_lab
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
    tolerance: float = 0.0
    """By how much the published model may differ from the trained one (logits)."""

    @property
    def settings(self) -> dict[str, Any]:
        return {self.method: {**ADAPTER, **self.changes}}

    @property
    def is_difference(self) -> bool:
        """Whether what is published is a difference: it is exact where arithmetic is."""
        return "init" in self.changes


VARIANTS = {
    "rsLora": Variant({"rsLora": True}, config={"use_rslora": True}),
    "dora": Variant({"dora": True}, unservable="dora", config={"use_dora": True}),
    "pissa": Variant({"init": "pissa"}, rank=2 * RANK, rate=1e-3),
    "olora": Variant({"init": "olora"}, rank=2 * RANK, rate=1e-3),
    "pissa with rsLora": Variant(
        {"init": "pissa", "rsLora": True}, rank=2 * RANK, rate=1e-3, config={"use_rslora": True}
    ),
    "loraPlus": Variant({"loraPlusRatio": 4.0}, rate=5e-3),
    "all-linear": Variant({"targetModules": ["all-linear"]}, config={"target_modules": sorted(ALL_LINEAR)}),
    "modulesToSave": Variant(
        {"targetModules": ATTENTION, "modulesToSave": ["embed_tokens"]},
        unservable="embed_tokens",
        config={"modules_to_save": ["embed_tokens"]},
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
        tolerance=0.1,
    ),
}


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model that knows the wrong answers, and the right ones."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "pretrained", pretrained=True), "pretrained")
        yield made


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))
def test_a_variant_learns_and_is_published_for_the_untouched_base(
    lab: Lab, variant: Variant, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if variant.is_difference:
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
    dtype: Literal["bfloat16", "float32"] = "float32" if variant.is_difference else "bfloat16"
    read = read_back(lab, contract, lab.root / "pretrained", tmp_path, dtype)
    torch.testing.assert_close(read, run.logits, rtol=0, atol=1e-3 if variant.is_difference else variant.tolerance)


def test_the_second_matrix_learns_faster_by_the_ratio(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[sft.Sft] = []
    real = sft.build

    def kept(*given: Any, **more: Any) -> sft.Sft:
        seen.append(real(*given, **more))
        return seen[-1]

    monkeypatch.setattr(sft, "build", kept)
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
    ("method", "saved", "words"),
    [
        ("lora", "embeddings", "modulesToSave embeddings: the base model has no such layer"),
        ("lora", "rotary_emb", "modulesToSave rotary_emb: the base model has no such layer with weights"),
        ("qlora", "mlp", "modulesToSave mlp: qlora holds it in 4 bits"),
    ],
)
def test_a_layer_that_cannot_be_trained_whole_is_refused(lab: Lab, method: str, saved: str, words: str) -> None:
    settings = {method: {**ADAPTER, "targetModules": ["q_proj"], "modulesToSave": [saved]}}
    record = lab.run(lab.contract(settings, MODEL, TRAIN, training={"maxSteps": 1})).record
    assert record is not None
    assert record.reason == "MethodNotApplicable"
    assert words in record.message
