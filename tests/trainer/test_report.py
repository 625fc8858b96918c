"""The report that a real run leaves."""

import html
import re
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api import yaml
from lorikeet_api.contract import REPORT
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_operator.finetune.resolve import resolve
from lorikeet_trainer import summary
from lorikeet_trainer.profile import bins
from lorikeet_trainer.spent import PARTS
from lorikeet_trainer.state import MetricsFile, Prepared, Trained
from tests import resources
from tests.trainer import tiny
from tests.trainer.lab import Lab
from tests.trainer.probe import Run, run_and_probe
from tests.unit.run.report import browser

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/pretrained", "s3://datasets/train.jsonl"
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
SET = {"maxGradNorm": 1.0, "scheduler": "cosine", "weightDecay": 0.0}
"""What the tests' contracts leave to the trainer, and the operator sets."""


@pytest.fixture(scope="module")
def trained(lab: Lab) -> Run:
    training = {**SET, "epochs": 12, "evalSteps": 30, "checkpoints": {"everySteps": 20}}
    return run_and_probe(lab, lab.contract("lora", MODEL, TRAIN, dataset=HELD_OUT, training=training))


@pytest.fixture
def page(lab: Lab, trained: Run) -> str:
    return lab.fetch(trained.contract, REPORT).decode()


def test_a_run_names_its_report_which_a_browser_opens(lab: Lab, trained: Run) -> None:
    contract, artifacts = trained.contract, trained.record.artifacts
    assert artifacts is not None
    assert artifacts.report == f"{contract.output_uri}/{contract.run_id}/{REPORT}"
    key = artifacts.report.removeprefix("s3://out/")
    assert lab.server.client().head_object(Bucket="out", Key=key)["ContentType"] == "text/html"


def test_it_has_all_curves(page: str) -> None:
    plots = re.findall(r'<svg class="plot".*?<title[^>]*>([^<]*)</title>(.*?)</figure>', page, re.DOTALL)
    drawn = {title: len(re.findall(r"<polyline points=", body)) for title, body in plots}
    assert drawn == {
        "Loss": 2,
        "Learning rate": 1,
        "Gradient norm": 1,
        "Tokens per second": 1,
        "Memory": 1,
        "Length of the training examples": 0,
    }


async def test_a_browser_draws_all_of_it_and_asks_for_nothing_else(page: str, tmp_path: Path) -> None:
    found = await browser.drawn(page, tmp_path, 1280, 900)
    plots = found["plots"]
    assert len(plots) == 6
    assert all(plot["astray"] == [] and (plot["lines"] or plot["bars"]) for plot in plots)
    lines = [line for plot in plots for line in plot["lines"]]
    assert len(lines) == 6
    assert all(line["points"] >= 2 and line["outside"] == 0 and line["width"] > 0 for line in lines)
    assert len(found["samples"]) == 4


def test_its_configuration_is_the_contract_and_its_job_asks_for_the_very_same_run(trained: Run, page: str) -> None:
    written = re.findall(r'<pre class="scroll code"[^>]*>(.*?)</pre>', page, re.DOTALL)
    configuration, job = (yaml.load(html.unescape(text)) for text in written)
    assert configuration == trained.contract.to_wire()
    again = resolve(FineTuneJob.model_validate(job), resources.profile(), "registry/trainer:1").contract
    assert (again.run_id, again.output_uri) == (trained.contract.run_id, trained.contract.output_uri)


def test_it_shows_what_the_base_said_and_what_the_adapter_says(lab: Lab, trained: Run, page: str) -> None:
    samples = Trained.read(lab.layout(trained.contract).trained).samples
    assert len(samples) == 4
    for sample, row in zip(samples, tiny.rows()[1], strict=False):
        assert sample.prompt == f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        assert sample.expected == row["completion"]
        assert sample.after.ended
        assert sample.before.text in tiny.COLOURS.values()
        assert sample.before.text != row["completion"], "the base knows the wrong colours"
        assert row["prompt"] in page
    assert any(sample.after.text == sample.expected for sample in samples)


def test_the_time_is_told_apart(lab: Lab, trained: Run, page: str) -> None:
    layout = lab.layout(trained.contract)
    seconds = MetricsFile.read(layout.output / "metrics.json").seconds
    assert trained.metrics.train_seconds is not None
    assert seconds["steps"] + seconds["checkpoints"] == pytest.approx(trained.metrics.train_seconds, rel=0.01)
    assert seconds["train"] >= seconds["steps"] + seconds["checkpoints"] + seconds["evals"] - 0.01
    assert min(seconds[part] for part in ("steps", "checkpoints", "evals", "base_samples", "samples")) > 0
    assert Prepared.read(layout.prepared).seconds > 0
    parts = PARTS.keys() & seconds.keys()
    assert parts == PARTS.keys() - {"probe", "base_test", "test", "base_general", "general", "last_eval"}, (
        "it has no GPU, neither a test set nor a general one, and the last weights are published"
    )
    assert all((PARTS[part].title in page) == (seconds[part] > 0) for part in parts), "no part that took no time"
    total = Prepared.read(layout.prepared).seconds + sum(seconds[part] for part in parts)
    told = trained.metrics.to_wire()
    six = ("fetch", "tokenize", "load", "step", "checkpoint", "evaluate")
    assert sum(told[f"{part}Seconds"] for part in six) == pytest.approx(total, rel=1e-3)
    assert told["publishSeconds"] > 0
    assert told["stepsPercent"] == pytest.approx(100 * seconds["steps"] / (total + told["publishSeconds"]), rel=1e-3)


def test_what_is_kept_on_the_way_is_sized(trained: Run) -> None:
    metrics = trained.metrics
    assert metrics.trainable_parameters is not None
    assert metrics.checkpoint_bytes is not None
    assert metrics.checkpoint_bytes > 3 * 2 * metrics.trainable_parameters, "weights of two bytes, of each two moments"


def test_the_pace_is_that_of_the_steps(lab: Lab, trained: Run) -> None:
    pace = MetricsFile.read(lab.layout(trained.contract).output / "metrics.json").pace
    mean = trained.metrics.tokens_per_second
    assert mean is not None
    assert min(point.tokens_per_second for point in pace) <= mean * 1.5
    assert max(point.tokens_per_second for point in pace) >= mean
    assert trained.metrics.peak_memory_bytes is not None
    # Linux counts what a process holds now, and its peak, not quite at the same time.
    assert all(0 < point.memory_bytes <= 1.05 * trained.metrics.peak_memory_bytes for point in pace)


def test_the_data_are_profiled(lab: Lab, trained: Run) -> None:
    profile = Trained.read(lab.layout(trained.contract).trained).profile
    assert [(one.rows, one.format, one.use) for one in profile.sources] == [
        (60, "completion", "training"),
        (12, "completion", "evaluation"),
    ]
    assert (profile.train_examples, profile.held_out_examples, profile.dropped) == (60, 12, 0)
    assert sum(one.examples for one in profile.lengths) == 60
    assert profile.trained_tokens == trained.metrics.trained_tokens


def test_bins_are_equal_and_hold_all() -> None:
    found = bins([3, 4, 4, 17, 90])
    assert [(one.first, one.last) for one in found][:2] == [(0, 9), (10, 19)]
    assert [one.examples for one in found] == [3, 1, *[0] * 7, 1]
    assert [(one.first, one.last, one.examples) for one in bins([7, 7])] == [(7, 7, 2)]
    assert bins([]) == []


def test_a_defect_of_the_report_does_not_cost_the_run(lab: Lab, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> str:
        raise ValueError("a defect")

    layout = lab.layout(trained.contract)
    file = layout.output / REPORT
    file.unlink()
    monkeypatch.setattr(summary, "render", broken)
    summary.write_report(trained.contract, layout, Prepared.read(layout.prepared), Trained.read(layout.trained))
    assert not file.exists()


def test_plain_texts_have_no_prompts_to_answer(lab: Lab) -> None:
    uri = lab.put_rows("plain.jsonl", [{"text": f"The number {n} follows {n - 1}."} for n in range(12)])
    contract = lab.contract("lora", MODEL, uri, dataset={"evalFraction": 0.25}, training={"maxSteps": 2})
    assert lab.run(contract).exit_code == 0
    assert Trained.read(lab.layout(contract).trained).samples == []
    assert 'id="samples"' not in lab.fetch(contract, REPORT).decode()
