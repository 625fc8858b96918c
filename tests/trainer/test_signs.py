"""Runs that go wrong for real, each in one way, and the sign that tells of it; healthy ones, which show none."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorikeet_api.contract import REPORT, Metrics, RunContract
from lorikeet_api.training import DataSource
from lorikeet_run import log
from lorikeet_trainer.loop import Guarded
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import Layout, StageResult, Trained
from lorikeet_trainer.upload import Uploader
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/pretrained", "s3://datasets/train.jsonl"
HELD_OUT: dict[str, Any] = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model that knows the wrong answers, these, the right ones, and answers that are good for nothing."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "pretrained", pretrained=True), "pretrained")
        made.put_rows("known.jsonl", tiny.known())
        made.put_rows("shuffled.jsonl", tiny.rows(shuffled=True)[0][:16])
        made.put_rows("loops.jsonl", [{**row, "completion": "blue " * 16} for row in tiny.rows()[0]])
        yield made


def metrics_of(result: StageResult) -> Metrics:
    assert result.record is not None
    assert result.record.metrics is not None, result.record.message
    return result.record.metrics


def signs(result: StageResult) -> list[tuple[str, int]]:
    return [(sign.name, sign.step) for sign in metrics_of(result).signs or []]


def scaled(lab: Lab, factor: float) -> str:
    """Store a model whose last layer before the output gives `factor` times as much; return its URI."""
    name = f"scaled-{factor:g}"
    folder = tiny.write_model(lab.root / name)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= factor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return lab.put_folder(folder, name)


def healthy(lab: Lab, seed: int) -> RunContract:
    training = {"maxSteps": 20, "evalSteps": 5, "seed": seed, "loggingSteps": 1}
    return lab.contract("lora", MODEL, TRAIN, dataset={**HELD_OUT, "general": {"uri": TRAIN}}, training=training)


@pytest.fixture(scope="module")
def fetched(lab: Lab) -> Layout:
    """Return a folder with all that healthy runs train on."""
    contract = healthy(lab, 0)
    assert run_stage("prepare", lab.write(contract), lab.layout(contract)).exit_code == 0
    return lab.layout(contract)


@pytest.mark.parametrize("seed", range(10))
def test_a_healthy_run_shows_none(lab: Lab, fetched: Layout, seed: int) -> None:
    result = run_stage("train", lab.write(healthy(lab, seed)), fetched)
    assert result.exit_code == 0, result.record
    trained = Trained.read(fetched.trained)
    assert (trained.metrics.steps, trained.metrics.signs) == (20, None)
    assert trained.metrics.general_loss is not None
    assert trained.metrics.base_general_loss is not None
    assert trained.metrics.general_loss < trained.metrics.base_general_loss
    assert len(trained.samples) == 4


def overfitting(lab: Lab, **training: Any) -> RunContract:
    """Return a run that learns few wrong answers by heart."""
    settings = {"maxSteps": 32, "epochs": 16, "loggingSteps": 1, "evalSteps": 4, **training}
    return lab.contract("lora", MODEL, "s3://datasets/shuffled.jsonl", dataset=HELD_OUT, training=settings)


def test_learning_few_examples_by_heart_is_overfitting_from_where_the_held_out_loss_was_lowest(lab: Lab) -> None:
    contract = overfitting(lab)
    result = lab.run(contract)
    curve = json.loads(lab.fetch(contract, "metrics.json"))["curve"]
    (found,) = metrics_of(result).signs or []
    held_out = {point["step"]: point["evalLoss"] for point in curve if "evalLoss" in point}
    before = {step: loss for step, loss in held_out.items() if step <= found.step}
    assert (found.name, found.step) == ("Overfitting", min(before, key=lambda step: before[step]))
    assert any(loss > 1.05 * held_out[found.step] for step, loss in held_out.items() if step > found.step)
    assert result.record is not None
    assert result.record.message.endswith(f"; signs that it went wrong: Overfitting from step {found.step} on")
    page = lab.fetch(contract, REPORT).decode()
    assert f'<th scope="row">Overfitting</th><td class="number">{found.step}</td>' in page


def test_a_poisoned_batch_is_a_spike_of_the_loss_at_its_step(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    step_made = Guarded.training_step

    def poisoned(self: Any, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        if self.state.global_step + 1 == 20:
            counted = inputs["labels"] != -100
            chance = torch.Generator().manual_seed(0)
            noise = torch.randint(5, 200, inputs["labels"].shape, generator=chance)
            inputs = {**inputs, "labels": torch.where(counted, noise, inputs["labels"])}
        return step_made(self, model, inputs, *more)

    monkeypatch.setattr(Guarded, "training_step", poisoned)
    training = {"maxSteps": 24, "loggingSteps": 1}
    assert signs(lab.run(lab.contract("lora", MODEL, TRAIN, training=training))) == [("LossSpike", 20)]


@pytest.mark.parametrize(("factor", "name"), [(1e-7, "VanishingGradients"), (1e4, "ExplodingGradients")])
def test_a_layer_of_another_scale_lets_gradients_vanish_or_explode_from_the_first_step_on(
    lab: Lab, factor: float, name: str
) -> None:
    training = {"maxSteps": 8, "loggingSteps": 1, "learningRate": 1e-4}
    assert (name, 1) in signs(lab.run(lab.contract("lora", scaled(lab, factor), TRAIN, training=training)))


def test_a_model_that_was_taught_to_repeat_itself_does(lab: Lab) -> None:
    training = {"epochs": 6, "evalSteps": 1000}
    result = lab.run(lab.contract("lora", MODEL, "s3://datasets/loops.jsonl", dataset=HELD_OUT, training=training))
    assert ("Repetition", metrics_of(result).steps) in signs(result)


def test_a_model_that_learns_to_repeat_itself_is_ended_on_the_way_where_that_fails(lab: Lab) -> None:
    training = {"epochs": 6, "evalSteps": 8, "signs": {"failOn": ["Repetition"]}}
    result = lab.run(lab.contract("lora", MODEL, "s3://datasets/loops.jsonl", dataset=HELD_OUT, training=training))
    assert result.record is not None
    assert result.record.reason == "Repetition"
    ((name, step),) = signs(result)
    steps = metrics_of(result).steps
    assert steps is not None
    assert (name, step + 8) == ("Repetition", steps), "from the first of two evaluations on"
    assert steps < 6 * 12


def forgetting(lab: Lab, **training: Any) -> RunContract:
    """Return a run that learns other answers than the model knows, which are the general set."""
    dataset = {"general": {"uri": "s3://datasets/known.jsonl"}}
    return lab.contract("lora", MODEL, TRAIN, dataset=dataset, training={"maxSteps": 12, **training})


FAILING: dict[str, Any] = {"signs": {"failOn": ["Forgetting"]}}


def test_other_answers_than_those_it_knew_are_forgetting_at_the_last_step(lab: Lab) -> None:
    contract = forgetting(lab)
    result = lab.run(contract)
    metrics = metrics_of(result)
    assert signs(result) == [("Forgetting", 12)]
    assert metrics.base_general_loss is not None
    assert metrics.general_loss is not None
    assert metrics.general_loss > 0.3 + metrics.base_general_loss
    told = f"rose from {metrics.base_general_loss:.4g} before training to {metrics.general_loss:.4g}"
    assert told in lab.fetch(contract, REPORT).decode()
    # Whoever fails on it does not adopt that, nor what was judged by another set.
    elsewhere = {"output_uri": contract.output_uri}
    failing = forgetting(lab, **FAILING).model_copy(update=elsewhere)
    assert failing.run_id == contract.run_id
    assert ended(lab.run(failing))[:2] == (64, "Forgetting")
    dataset = failing.dataset.model_copy(update={"general": DataSource(uri=TRAIN)})
    code, reason, message = ended(lab.run(failing.model_copy(update={"dataset": dataset})))
    assert (code, reason) == (64, "OutputConflict")
    assert "but for its general set, so whether it has forgotten is not known: give another output.uri" in message


def test_forgetting_ends_a_run_that_fails_on_it_and_without_a_general_set_there_is_none(lab: Lab) -> None:
    contract = forgetting(lab, **FAILING)
    result = lab.run(contract)
    assert ended(result)[:2] == (64, "Forgetting")
    assert "mix general examples into dataset.train" in ended(result)[2]
    assert (signs(result), metrics_of(result).steps) == ([("Forgetting", 12)], 12)
    assert lab.published(contract) == ["run.json"]
    without = contract.model_copy(update={"dataset": contract.dataset.model_copy(update={"general": None})})
    code, reason, message = ended(lab.run(without))
    assert (code, reason) == (64, "InvalidContract")
    assert "set dataset.general" in message


def ended(result: StageResult) -> tuple[int, str, str]:
    assert result.record is not None
    return result.exit_code, result.record.reason, result.record.message


def test_a_sign_that_the_request_fails_on_ends_the_run_and_what_it_kept_is_gone_on_from(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = overfitting(lab, checkpoints={"everySteps": 5}, signs={"failOn": ["Overfitting"]})
    result = lab.run(failing)
    assert result.record is not None
    (sign,) = metrics_of(result).signs or []
    assert (result.exit_code, result.record.reason, result.record.retryable) == (64, "Overfitting", False)
    assert result.record.message.startswith(f"Overfitting from step {sign.step} on: the held-out loss rose from")
    assert "lower training.epochs" in result.record.message
    assert lab.published(failing) == ["run.json"]
    assert (steps := metrics_of(result).steps) is not None
    assert sign.step < steps < 32
    Uploader(lab.checkpoints(failing), lab.layout(failing), keep=2).run(lambda seconds: True)
    warned = overfitting(lab, checkpoints={"everySteps": 5})
    assert warned.run_id == failing.run_id
    warned = warned.model_copy(update={"output_uri": failing.output_uri})
    capsys.readouterr()
    log.set_up()
    again = lab.run(warned)
    assert again.exit_code == 0, again.record
    assert metrics_of(again).resumed_from_step == (steps - 1) // 5 * 5
    assert signs(again) == [("Overfitting", sign.step)]
    assert "event=sign sign=Overfitting" in capsys.readouterr().out
    adopted = lab.run(failing)
    assert adopted.record is not None
    assert (adopted.exit_code, adopted.record.reason) == (64, "Overfitting"), "it is no result of this request"
