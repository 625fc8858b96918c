"""Objectives beside sft, each trained for real on a tiny model: the right thing happens on held-out rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer
from trl.experimental.orpo import ORPOTrainer  # a warning: that it is experimental

from lorikeet_api.contract import Start
from lorikeet_api.defaults import DEFAULTS
from lorikeet_api.objectives import Dpo
from lorikeet_run.tokens import Tokens
from lorikeet_trainer.evaluate import joined
from lorikeet_trainer.objectives.orpo import orpo_loss
from lorikeet_trainer.upload import Uploader
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, Lab, open_lab
from tests.trainer.probe import Run, read_back, run_and_probe
from tests.trainer.test_resume import run_until

pytestmark = pytest.mark.trainer

MODEL = "s3://models/pretrained"
PAIRS, HELD_OUT = "s3://datasets/pairs.jsonl", {"eval": {"uri": "s3://datasets/held-out-pairs.jsonl"}}
JUDGED, HELD_JUDGED = "s3://datasets/judged.jsonl", {"eval": {"uri": "s3://datasets/held-out-judged.jsonl"}}
DATA = {"dpo": (PAIRS, HELD_OUT), "orpo": (PAIRS, HELD_OUT), "reward": (PAIRS, HELD_OUT), "kto": (JUDGED, HELD_JUDGED)}
PROMPTS, HELD_PROMPTS = "s3://datasets/prompts.jsonl", {"eval": {"uri": "s3://datasets/held-out-prompts.jsonl"}}
DATA["rlhf"] = (PROMPTS, HELD_PROMPTS)
SETTINGS: dict[str, dict[str, Any]] = {
    "rlhf": {
        "numGenerations": 4,
        "maxCompletionLength": 6,
        "temperature": 2.0,
        "rewards": [{"regex": {"pattern": "^[a-m]"}}],
    }
}
"""What objectives cannot do without."""
METHODS: dict[str, dict[str, Any]] = {"lora": {"lora": ADAPTER}, "qlora": {"qlora": ADAPTER}, "full": {"full": {}}}


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model that answers every question wrongly, and pairs of which the right answer is chosen."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "pretrained", pretrained=True), "pretrained")
        pairs, held_out = tiny.preferences()
        made.put_rows("pairs.jsonl", pairs)
        made.put_rows("held-out-pairs.jsonl", held_out)
        made.put_rows("judged.jsonl", judged(pairs))
        made.put_rows("held-out-judged.jsonl", judged(held_out))
        # Two steps an epoch: the third one is of the second epoch.
        made.put_rows("prompts.jsonl", [{"prompt": pair["prompt"]} for pair in pairs[:4]])
        made.put_rows("held-out-prompts.jsonl", [{"prompt": pair["prompt"]} for pair in held_out[:3]])
        yield made


def judged(pairs: list[tiny.Row]) -> list[tiny.Row]:
    return [
        {"prompt": pair["prompt"], "completion": pair[role], "label": role == "chosen"}
        for pair in pairs
        for role in ("chosen", "rejected")
    ]


def run(lab: Lab, objective: str, method: str = "lora", settings: dict[str, Any] | None = None, **training: Any) -> Run:
    data, held_out = DATA[objective]
    contract = lab.contract(
        METHODS[method], MODEL, data, dataset=held_out, objective={objective: settings or {}}, training=training
    )
    return run_and_probe(lab, contract)


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_the_better_answer_of_unseen_pairs_wins_though_it_is_the_longer_in_half_of_them(
    lab: Lab, objective: str, tmp_path: Path
) -> None:
    learned = run(lab, objective, epochs=3, learningRate=2e-3, evalSteps=4)
    metrics = learned.metrics
    assert metrics.base_eval_accuracy is not None
    assert metrics.eval_accuracy is not None
    assert metrics.eval_accuracy >= 0.9 > metrics.base_eval_accuracy
    assert metrics.eval_margin is not None
    assert metrics.eval_margin > 0
    assert metrics.eval_loss is not None
    assert metrics.base_eval_loss is not None
    assert metrics.eval_loss < metrics.base_eval_loss
    assert metrics.perplexity is None
    if objective == "dpo":
        read = read_back(lab, learned.contract, lab.root / "pretrained", tmp_path)
        torch.testing.assert_close(read, learned.logits, rtol=0, atol=0)
    assert lab.manifest(learned.contract).servable.lora
    names = lab.published(learned.contract)
    assert not [name for name in names if "/ref/" in name]
    if objective != "orpo":
        points = json.loads(lab.fetch(learned.contract, "metrics.json"))["curve"]
        assert points[0]["figures"]["margin"] == pytest.approx(0, abs=0.05)
        assert [point for point in points if "loss" in point][-1]["figures"]["margin"] > 0.5


def test_half_of_the_unseen_pairs_have_the_longer_answer_chosen_and_half_the_shorter_one() -> None:
    made = tiny.tokenizer(tiny.CHATML)

    def length(answer: str) -> int:
        return len(made(answer, add_special_tokens=False)["input_ids"])

    more = [length(pair["chosen"]) - length(pair["rejected"]) for pair in tiny.preferences()[1]]
    assert sum(each > 0 for each in more) == sum(each < 0 for each in more) == len(more) / 2


def test_each_loss_of_dpo_makes_weights_of_its_own(lab: Lab) -> None:
    """Without a margin, at the first step, most pull alike: the two after it, with margins, tell them apart."""
    losses = get_args(Dpo.model_fields["loss"].annotation)
    made = []
    for loss in losses:
        settings = {"loss": loss, "beta": 1.0, **({"labelSmoothing": 0.2} if loss == "robust" else {})}
        training = {"maxSteps": 3, "learningRate": 5e-3, "loggingSteps": 1}
        contract = lab.contract("lora", MODEL, PAIRS, objective={"dpo": settings}, training=training)
        assert lab.run(contract).exit_code == 0
        margins = [point["figures"]["margin"] for point in json.loads(lab.fetch(contract, "metrics.json"))["curve"]]
        assert margins[-1] > 1 > 0.05 > abs(margins[0]), loss
        made.append(weights(lab, contract))
    assert len({tuple(sorted(each.items())) for each in made}) == len(losses) >= 6


def test_a_run_on_preferences_measures_by_the_adapter_that_it_begins_with(lab: Lab) -> None:
    """By the base, this one would have margins of its own at the first step already."""
    result = lab.run(lab.contract("lora", MODEL, "s3://datasets/train.jsonl", training={"maxSteps": 16}))
    assert result.record is not None
    assert result.record.artifacts is not None
    start = Start(uri=result.record.artifacts.uri, sha256=result.record.artifacts.sha256)
    training = {"maxSteps": 2, "learningRate": 1e-3, "loggingSteps": 1}
    further = lab.contract("lora", MODEL, PAIRS, objective={"dpo": {}}, start=start, training=training)
    assert lab.run(further).exit_code == 0
    margins = [point["figures"]["margin"] for point in json.loads(lab.fetch(further, "metrics.json"))["curve"]]
    assert margins[0] == pytest.approx(0, abs=0.02)
    assert margins[1] > 0.05


def test_a_reward_model_ranks_unseen_pairs_for_a_stranger_too(lab: Lab, tmp_path: Path) -> None:
    contract = lab.contract(
        METHODS["lora"], MODEL, PAIRS, dataset=HELD_OUT, objective={"reward": {}},
        training={"epochs": 3, "learningRate": 2e-3},
    )  # fmt: skip
    result = lab.run(contract)
    assert result.exit_code == 0, result.record
    assert result.record is not None
    metrics = result.record.metrics
    assert metrics is not None
    assert metrics.eval_accuracy is not None
    assert metrics.eval_accuracy >= 0.9
    manifest = lab.manifest(contract)
    assert (manifest.kind, manifest.servable.lora) == ("reward", False)
    assert "reward model" in str(manifest.servable.reason)
    for name in lab.published(contract):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(lab.fetch(contract, name))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score"]
    config["base_model_name_or_path"] = str(lab.root / "pretrained")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    stranger: Any = AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "adapter", num_labels=1, pad_token_id=tokenizer.pad_token_id
    ).eval()

    def score(prompt: str, answer: str) -> float:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        with torch.inference_mode():
            return float(stranger(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits)

    held_out = tiny.preferences()[1]
    right = [score(pair["prompt"], pair["chosen"]) > score(pair["prompt"], pair["rejected"]) for pair in held_out]
    assert sum(right) / len(right) == pytest.approx(metrics.eval_accuracy, abs=0.1)


FREE = {"full": {"beta": 0}}
PAIRED: list[tuple[str, str, dict[str, Any]]] = [
    *((method, objective, SETTINGS.get(objective, {})) for method, objective in DEFAULTS if objective != "sft"),
    # One of them is held to nothing.
    *((method, "rlhf", {**SETTINGS["rlhf"], "algorithm": "grpo", **FREE.get(method, {})}) for method in METHODS),
]
"""Every pair that is accepted, beside sft's, and both algorithms of rlhf."""


@pytest.mark.parametrize(
    ("method", "objective", "settings"),
    PAIRED,
    ids=["-".join([method, settings.get("algorithm", objective)]) for method, objective, settings in PAIRED],
)
def test_a_resumed_run_of_each_method_and_objective_ends_with_the_same_weights(
    lab: Lab, method: str, objective: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, held_out = DATA[objective]
    training = {"maxSteps": 3, "learningRate": 1e-3, "loggingSteps": 1, "epochs": 2.0}
    more = {"objective": {objective: settings}, "training": training}
    # What a general set is of, no weights depend on.
    general = {"general": {"uri": "s3://datasets/heldout.jsonl"}} if objective != "reward" else {}
    sets = (held_out, {**held_out, **general})
    whole, cut = (lab.contract(METHODS[method], MODEL, data, dataset=each, **more) for each in sets)
    assert lab.run(whole).exit_code == 0
    assert run_until(lab, cut, 2, monkeypatch).exit_code == 75
    Uploader(lab.checkpoints(cut), lab.layout(cut), keep=2).run(lambda seconds: True)
    assert lab.run(cut).exit_code == 0
    assert weights(lab, whole) == weights(lab, cut)
    # Also by the reference of held-out rows, which is the model as it was before training.
    ends = [lab.manifest(each).metrics for each in (whole, cut)]
    assert ends[1].resumed_from_step == 2
    assert ends[0].eval_loss == ends[1].eval_loss
    assert ends[0].train_loss == ends[1].train_loss
    measured = [ends[1].base_general_loss, ends[1].general_loss]
    assert [loss is not None for loss in measured] == [bool(general)] * 2


def weights(lab: Lab, contract: Any) -> dict[str, str]:
    manifest = lab.manifest(contract)
    found = {file.path: file.sha256 for file in manifest.files if file.path.endswith(".safetensors")}
    assert found
    return found


def test_an_answer_that_is_certain_has_a_gradient_all_the_same() -> None:
    found = torch.tensor([0.0, -1e-8, -2.0, -3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(orpo_loss(found, torch.ones(4), 0.1), found)
    assert torch.isfinite(gradient).all()


def test_another_rows_answer_is_cut_where_the_prompt_is_long() -> None:
    def tokens(prompt: int, answer: int) -> Tokens:
        return joined(range(1, 1 + prompt), range(50, 50 + answer))

    mixed = tokens(6, 1).answered_by(tokens(2, 9), 8)
    assert (mixed.input_ids.tolist(), mixed.trained) == ([1, 2, 3, 4, 5, 6, 50, 51], 2)
    assert tokens(8, 1).answered_by(tokens(2, 9), 8).trained == 1


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_two_ranks_train_every_weight_by_one_reference(lab: Lab, objective: str) -> None:
    data, held_out = DATA[objective]
    training = {"maxSteps": 2, "learningRate": 1e-3, "loggingSteps": 1}
    contract = lab.contract(
        METHODS["full"], MODEL, data, dataset=held_out, objective={objective: {}}, training=training,
        gpus=2, allow_cpu=True,
    )  # fmt: skip
    code, record, log = lab.start(contract).end()
    assert (code, record["reason"]) == (0, "Published"), log
    assert "sharded=True" in log
    first = json.loads(lab.fetch(contract, "metrics.json"))["curve"][0]
    assert first["figures"]["margin"] == pytest.approx(0, abs=0.05)


def test_the_odds_ratio_loss_is_that_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lengths = torch.randint(1, 20, (8,))
    found = -torch.rand(8) * lengths
    trl = ORPOTrainer.__new__(ORPOTrainer)
    trl.beta = 0.3
    monkeypatch.setattr(ORPOTrainer, "accelerator", type("A", (), {"device": "cpu"})(), raising=False)
    means = found / lengths
    penalty = cast("Any", trl).odds_ratio_loss(means[:4], means[4:])[0].mean()
    expected = -found[:4].sum() / lengths[:4].sum() - penalty
    torch.testing.assert_close(orpo_loss(found, lengths, 0.3), expected)
