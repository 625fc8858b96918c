"""Policy optimisation, for real on a tiny model: rewards rise on prompts that no training row has, and others agree."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorikeet_api.contract import REPORT, RunContract
from lorikeet_run.tokenizer import load_tokenizer
from lorikeet_trainer.device import Compute
from lorikeet_trainer.evaluate import Passes
from lorikeet_trainer.rewards import make_rewards
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, Lab, open_lab
from tests.trainer.test_from import start_of
from tests.trainer.test_preflight import check

pytestmark = pytest.mark.trainer

MODEL = "s3://models/pretrained"
PROMPTS, HELD_OUT = "s3://datasets/prompts.jsonl", {"eval": {"uri": "s3://datasets/held-out-prompts.jsonl"}}
LORA: dict[str, Any] = {"lora": ADAPTER}


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model that answers with colours, and questions."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "pretrained", pretrained=True), "pretrained")
        for name, some in zip(("prompts", "held-out-prompts"), tiny.rows(), strict=True):
            made.put_rows(f"{name}.jsonl", some)
        pairs, held_out = tiny.preferences()
        made.put_rows("pairs.jsonl", pairs)
        made.put_rows("held-out-pairs.jsonl", held_out)
        both = [
            {"prompt": pair["prompt"], "completion": pair[role]} for pair in pairs for role in ("chosen", "rejected")
        ]
        made.put_rows("both.jsonl", both)
        yield made


def rlhf(lab: Lab, rewards: list[dict[str, Any]], settings: dict[str, Any] | None = None, **more: Any) -> RunContract:
    """Return a run that has answers rewarded."""
    training = {
        "maxSteps": 25, "epochs": 9.0, "batchSize": 32, "microBatchSize": 32, "learningRate": 5e-3,
        "scheduler": "constant", **more.pop("training", {}),
    }  # fmt: skip
    objective = {"numGenerations": 8, "maxCompletionLength": 8, "beta": 0.02, "rewards": rewards, **(settings or {})}
    return lab.contract(
        more.pop("method", LORA),
        MODEL,
        PROMPTS,
        dataset=HELD_OUT,
        objective={"rlhf": objective},
        training=training,
        **more,
    )


def published(lab: Lab, contract: RunContract, folder: Path) -> Path:
    """Bring what a run has published into a folder."""
    for name in lab.published(contract):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lab.fetch(contract, name))
    return folder


class Stranger:
    """Loads an adapter as anybody would, and has it answer."""

    def __init__(self, base: Path, adapter: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(adapter)
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model: Any = PeftModel.from_pretrained(loaded, str(adapter)).eval()
        torch.manual_seed(0)

    def ask(self, question: str, drawn: int = 0) -> tuple[list[str], list[float]]:
        """Return the likeliest answer, or as many as are drawn at temperature 1, and the KL divergence from the base at
        each of their tokens, in nats."""
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": drawn}
        turns = [{"role": "user", "content": question}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        asked = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        size = asked["input_ids"].shape[1]
        with torch.inference_mode():
            made = self.model.generate(**asked, **(how if drawn else {"do_sample": False}), max_new_tokens=8)
            now = self.model(input_ids=made).logits[:, size - 1 : -1].log_softmax(-1)
            with self.model.disable_adapter():
                before = self.model(input_ids=made).logits[:, size - 1 : -1].log_softmax(-1)
        said = made[:, size:]
        stops = (said == self.tokenizer.eos_token_id).int()
        written = stops.cumsum(-1) - stops == 0
        moved = (now.exp() * (now - before)).sum(-1)[written]
        return self.tokenizer.batch_decode(said, skip_special_tokens=True), moved.tolist()


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_a_rule_is_followed_on_unseen_prompts_and_a_stranger_agrees(lab: Lab, algorithm: str, tmp_path: Path) -> None:
    contract = rlhf(lab, [{"regex": {"pattern": "^(red|blue)$"}}], {"algorithm": algorithm})
    result = lab.run(contract)
    assert result.exit_code == 0, result.record
    metrics = lab.manifest(contract).metrics
    assert metrics.base_eval_reward is not None
    assert metrics.eval_reward is not None
    assert metrics.eval_reward >= 0.8 > 0.5 > metrics.base_eval_reward
    assert metrics.eval_loss == -metrics.eval_reward
    assert metrics.eval_kl is not None
    assert 0.1 < metrics.eval_kl < 3
    assert metrics.eval_length is not None
    assert metrics.eval_length <= 5, "the answer and where it stops"
    points = [point for point in json.loads(lab.fetch(contract, "metrics.json"))["curve"] if "loss" in point]
    assert points[0]["figures"]["kl"] == 0
    assert set(points[-1]["figures"]) == {"reward", "kl", "entropy", "length"}
    assert not [name for name in lab.published(contract) if "/ref/" in name]

    stranger = Stranger(lab.root / "pretrained", published(lab, contract, tmp_path) / "adapter")
    found = [stranger.ask(row["prompt"], drawn=8) for row in tiny.rows()[1]]
    followed = [bool(re.fullmatch("red|blue", answer)) for answers, _ in found for answer in answers]
    assert sum(followed) / len(followed) >= 0.8
    moved = [each for _, some in found for each in some]
    kl = sum(moved) / len(moved)
    assert 0.1 < kl < 3
    assert kl == pytest.approx(metrics.eval_kl, rel=0.35)


def test_a_reward_model_leads_an_adapter_that_was_trained_before(lab: Lab, tmp_path: Path) -> None:
    """The chain: answers of both kinds, what tells them apart, and a model that gives the better ones."""
    data = {"eval": {"uri": "s3://datasets/held-out-pairs.jsonl"}}
    sft = lab.contract(LORA, MODEL, "s3://datasets/both.jsonl", training={"epochs": 3.0})
    judge = lab.contract(
        LORA, MODEL, "s3://datasets/pairs.jsonl", dataset=data, objective={"reward": {}},
        training={"epochs": 3.0, "learningRate": 2e-3},
    )  # fmt: skip
    # Hardly trained, and whole.
    other = lab.contract("full", MODEL, "s3://datasets/pairs.jsonl", objective={"reward": {}}, training={"maxSteps": 1})
    first, reward, whole = (start_of(lab.run(each).record) for each in (sft, judge, other))
    rewards = [{"model": reward.to_wire(), "weight": 2.0}, {"model": whole.to_wire(), "weight": 0.001}]
    contract = rlhf(lab, rewards, start=first, training={"maxSteps": 12})
    code, checked = check(contract, tmp_path)
    assert (code, checked.pins and checked.pins[3:]) == (0, [reward.sha256, whole.sha256]), checked.message
    result = lab.run(contract.model_copy(update={"pins": checked.pins}))
    assert result.exit_code == 0, result.record
    manifest = lab.manifest(contract)
    judges = [(each.uri, each.files[0].sha256) for each in manifest.rewards or []]
    assert judges == [(each.uri, each.sha256) for each in (reward, whole)], "who judged is known by its content"
    assert REPORT in lab.published(contract)
    metrics = manifest.metrics
    assert metrics.base_eval_reward is not None
    assert metrics.eval_reward is not None
    assert metrics.eval_reward > metrics.base_eval_reward + 1
    assert metrics.eval_kl is not None
    assert 0.1 < metrics.eval_kl < 3
    assert metrics.eval_length is not None
    assert 4 <= metrics.eval_length <= 7, "it is, a colour, and where it stops; nothing is cut"
    points = json.loads(lab.fetch(contract, "metrics.json"))["curve"]
    assert points[0]["figures"]["kl"] == pytest.approx(0, abs=0.01), "by the adapter that it begins with"
    stranger = Stranger(lab.root / "pretrained", published(lab, contract, tmp_path / "policy") / "adapter")
    answers = [stranger.ask(row["prompt"])[0][0] for row in tiny.rows()[1]]
    assert sum(answer.startswith("it is") for answer in answers) / len(answers) >= 0.8

    _a_stranger_gives_the_same_numbers(lab, judge, contract, answers, tmp_path / "judge")


def _a_stranger_gives_the_same_numbers(
    lab: Lab, judge: RunContract, contract: RunContract, answers: list[str], folder: Path
) -> None:
    layout, tokenizer = lab.layout(contract), load_tokenizer(lab.root / "pretrained")
    compute = Compute(torch.device("cpu"), torch.bfloat16, 0, 1)
    passes = Passes(4, int(tokenizer.pad_token_id or 0), compute.autocast)
    ours, _ = make_rewards(contract, layout, tokenizer, compute, passes)
    adapter = published(lab, judge, folder) / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(lab.root / "pretrained")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    stranger: Any = AutoPeftModelForSequenceClassification.from_pretrained(
        adapter, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.bfloat16
    ).eval()
    prompts, completions, numbers = [], [], []
    for row, answer in zip(tiny.rows()[1], answers, strict=True):
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
        asked = str(tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip()
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            numbers.append(float(stranger(**ids).logits))
        prompts.append(tokenizer(asked, add_special_tokens=False)["input_ids"])
        completions.append(ids["input_ids"][0, len(prompts[-1]) :].tolist())
    found = ours(prompts=prompts, completions=answers, completion_ids=completions, row=["{}"] * len(answers))
    assert found == pytest.approx(numbers, abs=0.1)


def test_two_ranks_share_the_answers_of_a_step(lab: Lab) -> None:
    rewards = [{"regex": {"pattern": "^(red|blue)$"}}]
    training = {"maxSteps": 2, "microBatchSize": 4, "batchSize": 8, "learningRate": 1e-3, "loggingSteps": 1}
    settings = {"numGenerations": 4, "algorithm": "grpo", "temperature": 2.0}
    contract = rlhf(lab, rewards, settings, method="full", training=training, gpus=2, allow_cpu=True)
    code, record, log = lab.start(contract).end()
    assert (code, record["reason"]) == (0, "Published"), log
    first, second = json.loads(lab.fetch(contract, "metrics.json"))["curve"][:2]
    assert first["figures"]["kl"] == pytest.approx(0, abs=1e-3)
    assert second["figures"]["kl"] > 1e-5, "the reference stays where it was"
    assert record["metrics"]["evalLength"] > 1


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"regex": {"pattern": "(?=a)"}}, "rewards[0].regex.pattern is no regular expression"),
        ({"match": {"column": "solution"}}, "no column solution, which a match of objective.rlhf.rewards reads"),
    ],
)
def test_what_is_wrong_is_said_before_the_run(lab: Lab, tmp_path: Path, reward: dict[str, Any], words: str) -> None:
    code, record = check(rlhf(lab, [reward]), tmp_path)
    assert code in (64, 65)
    assert words in record.message


def test_answers_that_the_model_has_no_place_for_are_refused(lab: Lab) -> None:
    result = lab.run(rlhf(lab, [{"regex": {"pattern": "a"}}], {"maxCompletionLength": 500}))
    assert result.record is not None
    assert (result.exit_code, result.record.reason) == (64, "MethodNotApplicable")
    assert "its answers up to 500, and the base model 512 positions" in result.record.message
