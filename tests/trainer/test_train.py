"""Training for real, on tiny models: what it learns, what it publishes, what it refuses."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaMLP

from lorikeet_api.contract import RunContract
from lorikeet_run.render import OWN_TEMPLATE
from lorikeet_run.sources import read_data
from lorikeet_trainer import model, train
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.objectives.sft import Sft
from lorikeet_trainer.progress import Reporter
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import Evaluation, Prepared, StageResult, Trained
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import ALL_LINEAR, Lab, open_lab
from tests.trainer.probe import Run, read_back, run_and_probe

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The models and data that the tests here share."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "pretrained", pretrained=True), "pretrained")
        made.put_folder(tiny.write_model(made.root / "bare", template=None), "bare")
        made.put_rows("shuffled.jsonl", tiny.rows(shuffled=True)[0])
        yield made


MODEL, BARE, TRAIN = "s3://models/pretrained", "s3://models/bare", "s3://datasets/train.jsonl"
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}


def losses(lab: Lab, contract: RunContract) -> list[float]:
    """Run without publishing; return the loss curve."""
    path, layout = lab.write(contract), lab.layout(contract)
    for stage in ("prepare", "train"):
        result = run_stage(stage, path, layout)
        assert result.exit_code == 0, result.record
    curve = json.loads((layout.output / "metrics.json").read_text())["curve"]
    return [point["loss"] for point in curve if "loss" in point]


@pytest.fixture(scope="module", params=["lora", "qlora", "full"])
def learned(request: pytest.FixtureRequest, lab: Lab) -> Run:
    """Twelve epochs by each method."""
    contract = lab.contract(request.param, MODEL, TRAIN, dataset=HELD_OUT, training={"epochs": 12, "evalSteps": 1000})
    return run_and_probe(lab, contract)


def test_the_held_out_loss_falls(learned: Run) -> None:
    metrics = learned.metrics
    assert metrics.eval_loss is not None
    assert metrics.base_eval_loss is not None
    assert metrics.eval_loss < 0.4 * metrics.base_eval_loss
    assert (metrics.train_examples, metrics.eval_examples, metrics.steps) == (60, 12, 96)
    assert metrics.stop_token_percent == 100
    assert metrics.perplexity == pytest.approx(2.718281828**metrics.eval_loss, rel=1e-4)


TEST: dict[str, Any] = {"test": HELD_OUT["eval"]}


def test_a_test_set_and_a_general_set_judge_before_training_and_at_the_end_alone(lab: Lab) -> None:
    training = {"maxSteps": 4, "evalSteps": 2}
    sets = {**HELD_OUT, **TEST, "general": HELD_OUT["eval"]}
    contract = lab.contract("lora", MODEL, TRAIN, dataset=sets, training=training)
    metrics = run_and_probe(lab, contract).metrics
    assert (metrics.test_examples, metrics.eval_examples, metrics.train_examples) == (12, 12, 60)
    assert metrics.test_loss is not None
    assert metrics.test_loss == metrics.eval_loss
    assert metrics.base_test_loss == metrics.base_eval_loss != metrics.test_loss
    assert metrics.test_perplexity == metrics.perplexity
    assert (metrics.general_loss, metrics.base_general_loss) == (metrics.test_loss, metrics.base_test_loss)
    assert [source.uri for source in lab.manifest(contract).data] == [TRAIN, *["s3://datasets/heldout.jsonl"] * 3]
    uses = [source.use for source in Trained.read(lab.layout(contract).trained).profile.sources]
    assert uses == ["training", "evaluation", "test", "general"]


def test_a_test_set_has_no_part_in_what_is_held_out_of_the_training_set(lab: Lab) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, dataset={"evalFraction": 0.25, **TEST})
    layout = lab.layout(contract)
    assert run_stage("prepare", lab.write(contract), layout).exit_code == 0
    data = read_data(contract, layout.data, Prepared.read(layout.prepared).data)
    assert (len(data.train[0]), len(data.held_out), len(data.test)) == (45, 15, 12)
    twice = lab.put_rows("twice.jsonl", [{"prompt": "a", "completion": "b"}] * 4)
    code, reason, message = failure(lab.run(lab.contract("lora", MODEL, twice, dataset={"evalFraction": 0.25, **TEST})))
    assert (code, reason) == (65, "DataInvalid")
    assert "evalFraction needs at least two different examples" in message


def test_a_test_set_that_leaves_no_example_is_told(lab: Lab) -> None:
    long = lab.put_rows("long.jsonl", [{"prompt": "a " * 100, "completion": "b"}])
    code, reason, message = failure(lab.run(lab.contract("lora", MODEL, TRAIN, dataset={"test": {"uri": long}})))
    assert (code, reason) == (65, "DataInvalid")
    assert "no test example is left" in message


def test_shuffled_answers_do_not_reach_it(lab: Lab, learned: Run) -> None:
    if learned.contract.method.name != "lora":
        pytest.skip("one method is enough")
    training = {"epochs": 12, "evalSteps": 1000}
    contract = lab.contract("lora", MODEL, "s3://datasets/shuffled.jsonl", dataset=HELD_OUT, training=training)
    shuffled = run_and_probe(lab, contract).metrics
    assert shuffled.eval_loss is not None
    assert learned.metrics.eval_loss is not None
    assert learned.metrics.eval_loss < 0.6 * shuffled.eval_loss


def test_a_stranger_reads_the_same_model_from_s3(lab: Lab, learned: Run, tmp_path: Path) -> None:
    tolerance = 0.02 if learned.contract.method.name == "qlora" else 0
    read = read_back(lab, learned.contract, lab.root / "pretrained", tmp_path)
    torch.testing.assert_close(read, learned.logits, rtol=0, atol=tolerance)


def test_what_is_published(lab: Lab, learned: Run) -> None:
    manifest, method = lab.manifest(learned.contract), learned.contract.method.name
    names = {file.path for file in manifest.files}
    folder = "model" if method == "full" else "adapter"
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    weights = {"model.safetensors", "config.json", "generation_config.json"}
    adapter = {"adapter_model.safetensors", "adapter_config.json"}
    expected = tokenizer | (weights if method == "full" else adapter)
    assert names == {f"{folder}/{name}" for name in expected} | {"metrics.json", "report/index.html"}
    assert {*names, "manifest.json"} <= set(lab.published(learned.contract))
    assert (manifest.kind, manifest.servable.lora, manifest.rank) == (
        ("model", False, None) if method == "full" else ("adapter", True, 8)
    )
    assert manifest.template.source == "base"
    assert [source.rows for source in manifest.data] == [60, 12]
    assert all(len(file.sha256) == 64 for source in [manifest.base_model, *manifest.data] for file in source.files)
    assert manifest.libraries.keys() >= {"torch", "transformers", "peft", "trl", "bitsandbytes"}
    curve = json.loads(lab.fetch(learned.contract, "metrics.json"))["curve"]
    assert [point["step"] for point in curve if "loss" in point] == [1, *range(10, 100, 10), 96]


def test_nothing_published_names_a_path_of_the_pod(lab: Lab, learned: Run) -> None:
    work = str(lab.layout(learned.contract).model.parent).encode()
    for name in lab.published(learned.contract):
        content = lab.fetch(learned.contract, name)
        assert work not in content, name
    if learned.contract.method.adapter is not None:
        config = json.loads(lab.fetch(learned.contract, "adapter/adapter_config.json"))
        assert config["base_model_name_or_path"] == MODEL
        assert config["target_modules"] == sorted(ALL_LINEAR)


# 7 linear layers in each of 2 blocks; embeddings, head and norms beside them.
LINEAR = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
ALL = LINEAR + 2 * len(tiny.tokenizer(tiny.CHATML)) * 64 + 5 * 64


def test_the_share_that_is_trained_is_one_of_all_parameters_those_in_4_bits_counted_whole(learned: Run) -> None:
    rows_and_columns = 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    adapter = 8 * rows_and_columns
    trained, total = (ALL, ALL) if learned.contract.method.name == "full" else (adapter, ALL + adapter)
    assert learned.metrics.trainable_parameters == trained
    assert learned.metrics.trainable_percent == pytest.approx(100 * trained / total, rel=1e-5)


def test_quantised_layers_are_counted(learned: Run) -> None:
    if learned.contract.method.name != "qlora":
        assert learned.metrics.quantized_layers is None
        return
    assert learned.metrics.quantized_layers == 14
    assert learned.metrics.quantized_percent == pytest.approx(100 * LINEAR / ALL)


def test_a_finished_run_is_adopted_without_training(lab: Lab, learned: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("trained again"))
    again = lab.run(learned.contract)
    assert again.exit_code == 0
    assert again.record is not None
    assert again.record.reason == "Adopted"
    assert again.record.artifacts == learned.record.artifacts
    assert again.record.metrics == learned.metrics


def test_evaluating_before_training_changes_no_step_of_it(lab: Lab) -> None:
    """bitsandbytes would pack the 4-bit weights for inference, and no gradient would pass them afterwards."""
    training = {"maxSteps": 6, "loggingSteps": 1}
    without = losses(lab, lab.contract("qlora", MODEL, TRAIN, training=training))
    evaluated = losses(
        lab, lab.contract("qlora", MODEL, TRAIN, training={**training, "evalSteps": 2}, dataset=HELD_OUT)
    )
    assert evaluated == without


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("method", ["lora", "full"])
def test_accumulation_changes_how_often_a_model_is_run_and_no_loss(
    lab: Lab, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows differ in length, so a mean of micro batches' means would differ from the mean over tokens."""
    forward: Any = LlamaMLP.forward
    calls = Counter[int]()

    def counted(self: Any, states: torch.Tensor) -> Any:
        calls[len(states)] += self.training
        return forward(self, states)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    chat = [{"prompt": "count", "completion": "one two three " * (number % 4 + 1)} for number in range(16)]
    uri = lab.put_rows("uneven.jsonl", chat)
    training = {"maxSteps": 3, "loggingSteps": 1, "learningRate": 1e-3}
    curves = [
        losses(lab, lab.contract(method, MODEL, uri, training={**training, "microBatchSize": size}))
        for size in (1, 2, 8)
    ]
    assert curves[0] == pytest.approx(curves[2], rel=1e-4)
    assert curves[1] == pytest.approx(curves[2], rel=1e-4)
    assert set(calls) == {1, 2, 8}
    assert calls[1] == 2 * calls[2] == 8 * calls[8]


@pytest.mark.usefixtures("float32")
def test_activation_checkpointing_computes_again_and_changes_no_loss(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    forward: Any = LlamaMLP.forward
    calls = Counter[bool]()
    curves = {}
    for on in (False, True):

        def counted(self: Any, *given: Any, on: bool = on) -> Any:
            calls[on] += 1
            return forward(self, *given)

        monkeypatch.setattr(LlamaMLP, "forward", counted)
        training = {"maxSteps": 3, "loggingSteps": 1, "activationCheckpointing": on}
        curves[on] = losses(lab, lab.contract("lora", MODEL, TRAIN, training=training))
    assert curves[False] == pytest.approx(curves[True], rel=1e-4)
    assert calls[True] == 2 * calls[False]


ROWS: dict[str, list[tiny.Row]] = {
    "instruction": [{"instruction": f"Say {n}", "input": "please", "output": str(n)} for n in range(12)],
    "completion": [{"prompt": f"Say {n}", "completion": str(n)} for n in range(12)],
    "chat": [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": str(n)}]}
        for n in range(12)
    ],
    "text": [{"text": f"The number {n} follows {n - 1}."} for n in range(12)],
}


@pytest.mark.parametrize("data_format", list(ROWS))
@pytest.mark.parametrize("base", [MODEL, BARE])
def test_every_format_trains_with_and_without_a_chat_template(lab: Lab, data_format: str, base: str) -> None:
    uri = lab.put_rows(f"{data_format}.jsonl", ROWS[data_format])
    contract = lab.contract(
        "lora", base, uri, dataset={"format": data_format, "evalFraction": 0.25}, training={"maxSteps": 2}
    )
    metrics = run_and_probe(lab, contract).metrics
    manifest = lab.manifest(contract)
    assert (metrics.train_examples, metrics.eval_examples, metrics.steps) == (9, 3, 2)
    source = "none" if data_format == "text" else "base" if base == MODEL else "lorikeet"
    assert manifest.template.source == source
    if source == "lorikeet":
        assert lab.fetch(contract, "adapter/chat_template.jinja").decode() == OWN_TEMPLATE
    assert metrics.stop_token_percent == (None if data_format == "text" else 100)


def test_a_mixture_is_trained_in_its_shares(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one epoch of 12: a third is of 8 rows, of which 4 are seen, two thirds are of 4 rows, each seen twice."""
    step_made = Guarded.training_step
    seen = Counter[str]()

    def watched(self: Any, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        answers = [row[row != -100] for row in inputs["labels"]]
        seen.update(self.processing_class.decode(answer, skip_special_tokens=True).strip() for answer in answers)
        return step_made(self, model, inputs, *more)

    monkeypatch.setattr(Guarded, "training_step", watched)
    many = lab.put_rows("many.jsonl", ROWS["completion"][4:])
    few = lab.put_rows("few.jsonl", ROWS["chat"][:4])
    contract = lab.contract(
        "lora", MODEL, [{"uri": many, "weight": 1.0}, {"uri": few, "weight": 2.0}], training={"epochs": 1}
    )
    assert run_and_probe(lab, contract).metrics.train_examples == 12
    assert [source.rows for source in lab.manifest(contract).data] == [8, 4]
    assert {answer: seen.pop(answer) for answer in "0123"} == dict.fromkeys("0123", 2)
    assert list(seen.values()) == [1] * 4


def failure(result: StageResult) -> tuple[int, str, str]:
    assert result.record is not None
    return result.exit_code, result.record.reason, result.record.message


def test_an_evaluation_on_the_way_that_is_no_number_ends_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Sft.evaluate
    seen: list[Evaluation] = []

    def diverges(*given: Any) -> Evaluation:
        seen.append(real(*given))
        return seen[0] if len(seen) == 1 else Evaluation(loss=math.nan)

    monkeypatch.setattr(Sft, "evaluate", diverges)
    contract = lab.contract("lora", MODEL, TRAIN, dataset=HELD_OUT, training={"evalSteps": 2, "maxSteps": 4})
    code, reason, message = failure(lab.run(contract))
    assert (code, reason) == (64, "LossNotFinite")
    assert "the evaluation loss is not a finite number at step 2" in message


def test_a_base_model_that_computes_no_number_is_told_before_training(lab: Lab) -> None:
    uri = lab.put_folder(tiny.write_model(lab.root / "broken", poisoned="<|im_start|>"), "broken")
    code, reason, message = failure(lab.run(lab.contract("lora", uri, TRAIN, dataset=HELD_OUT)))
    assert (code, reason) == (64, "ModelInvalid")
    assert "before training" in message


def test_weights_that_are_missing_are_not_made_up(lab: Lab) -> None:
    folder = tiny.write_model(lab.root / "partial")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    code, reason, message = failure(lab.run(lab.contract("lora", lab.put_folder(folder, "partial"), TRAIN)))
    assert (code, reason) == (64, "ModelInvalid")
    assert "lack 1 of its weights (model.layers.1.mlp.up_proj.weight" in message


def test_a_file_that_was_cut_short_is_told(lab: Lab) -> None:
    folder = tiny.write_model(lab.root / "cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    code, reason, message = failure(lab.run(lab.contract("lora", lab.put_folder(folder, "cut"), TRAIN)))
    assert (code, reason) == (64, "ModelInvalid")
    assert "cannot be loaded" in message


def test_rows_longer_than_the_model_has_positions_are_refused(lab: Lab) -> None:
    uri = lab.put_folder(tiny.write_model(lab.root / "short", max_position_embeddings=16), "short")
    code, reason, message = failure(lab.run(lab.contract("lora", uri, TRAIN)))
    assert (code, reason) == (64, "MethodNotApplicable")
    assert "16 positions: set dataset.maxLength to 16 or less" in message


def test_a_generation_config_that_contradicts_itself_does_not_cost_the_run(lab: Lab) -> None:
    """Many published models have a temperature without do_sample; only a changed one is refused when it is saved."""
    folder = tiny.write_model(lab.root / "warm")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.7}))
    contract = lab.contract("full", lab.put_folder(folder, "warm"), TRAIN, training={"maxSteps": 1})
    assert lab.run(contract).exit_code == 0
    assert json.loads(lab.fetch(contract, "model/generation_config.json"))["temperature"] == 0.7


def test_a_layer_that_stays_in_sixteen_bits_is_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = model._four_bits

    def but_one(*given: Any) -> Any:
        made = real(*given)
        made.llm_int8_skip_modules = ["lm_head", "down_proj"]
        return made

    monkeypatch.setattr(model, "_four_bits", but_one)
    code, reason, message = failure(lab.run(lab.contract("qlora", MODEL, TRAIN)))
    assert (code, reason) == (64, "MethodNotApplicable")
    assert "2 linear layers of the base model stay in 16 bits (model.layers.0.mlp.down_proj" in message


def test_unknown_modules_are_told_with_the_known(lab: Lab) -> None:
    contract = lab.contract({"lora": {"targetModules": ["q_proj", "c_attn"]}}, MODEL, TRAIN)
    code, reason, message = failure(lab.run(contract))
    assert (code, reason) == (64, "MethodNotApplicable")
    assert "targetModules c_attn:" in message
    assert ", ".join(sorted(ALL_LINEAR)) in message


def test_a_mixture_of_experts_is_not_quantised(lab: Lab) -> None:
    uri = lab.put_folder(tiny.write_experts(lab.root / "experts"), "experts")
    code, reason, message = failure(lab.run(lab.contract({"qlora": {"targetModules": ["q_proj"]}}, uri, TRAIN)))
    assert (code, reason) == (64, "MethodNotApplicable")
    assert "mixture of experts" in message
    with_lora = lab.contract({"lora": {"targetModules": ["q_proj"]}}, uri, TRAIN, training={"maxSteps": 1})
    assert lab.run(with_lora).exit_code == 0


def test_a_missing_gpu_is_a_broken_node(lab: Lab) -> None:
    result = lab.run(lab.contract("lora", MODEL, TRAIN, gpus=1, training={"maxSteps": 1}))
    assert failure(result)[:2] == (70, "NoGpu")
    assert result.record is not None
    assert result.record.retryable
    allowed = lab.contract("lora", MODEL, TRAIN, gpus=1, allow_cpu=True, training={"maxSteps": 1})
    assert lab.run(allowed).exit_code == 0


def test_a_foreign_file_in_the_way_is_refused(lab: Lab) -> None:
    contract = lab.contract("lora", MODEL, TRAIN)
    prefix = contract.output_uri.removeprefix("s3://out/")
    lab.server.put("out", f"{prefix}/{contract.run_id}/thesis.doc", b"mine")
    code, reason, message = failure(lab.run(contract))
    assert (code, reason) == (64, "OutputConflict")
    assert "thesis.doc" in message


def test_a_model_that_needs_code_of_its_own_is_refused(lab: Lab) -> None:
    config = json.loads((lab.root / "bare" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    for path in (lab.root / "bare").iterdir():
        lab.server.put("models", f"coded/{path.name}", path.read_bytes())
    lab.server.put("models", "coded/config.json", json.dumps(config).encode())
    code, reason, message = failure(lab.run(lab.contract("lora", "s3://models/coded", TRAIN)))
    assert (code, reason) == (64, "ModelInvalid")
    assert "no code out of a model's repository" in message


def test_all_rows_too_long_is_bad_data(lab: Lab) -> None:
    code, reason, message = failure(lab.run(lab.contract("lora", MODEL, TRAIN, dataset={"maxLength": 8})))
    assert (code, reason) == (65, "DataInvalid")
    assert "of all 60 maxLength 8 leaves no whole one" in message


def test_a_batch_that_ranks_cannot_share_is_refused(lab: Lab) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, gpus=3, allow_cpu=True)
    assert failure(lab.run(contract))[:2] == (64, "InvalidContract")


def test_the_last_step_is_logged_and_told_whatever_the_interval(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(Reporter, "training", lambda _, step, steps, *__: told.append((step, steps)))
    curve = losses(lab, lab.contract("lora", MODEL, TRAIN, training={"epochs": 1, "loggingSteps": 5}))
    assert told == [(0, 8), (1, 8), (5, 8), (8, 8)]
    assert len(curve) == 3
