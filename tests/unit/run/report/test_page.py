"""The page: what stands in it, and that nothing in it is more than text."""

from html.parser import HTMLParser
from typing import Any, get_args

import pytest

from lorikeet_api import yaml
from lorikeet_api.contract import Metrics, SourceDigest, Start, StorageAccess
from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.objectives import Objective, ObjectiveName
from lorikeet_api.signs import ADVICE, Sign
from lorikeet_api.training import ModelSource
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_operator.finetune.resolve import resolve
from lorikeet_run.report import DataProfile, Span, TrackerState, render
from lorikeet_run.report.page import MOST_FILES, POLICY
from lorikeet_run.report.reproduce import manifest
from tests import runs
from tests.unit.run.report import example
from tests.unit.run.report.hostile import ATTACK, hostile


class Parsed(HTMLParser):
    """The elements of a page with their attributes, its words, and what is open at its end."""

    VOID = ("meta", "line", "rect", "polyline", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID or tag == "rect":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def headings(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "h2"]


def test_what_users_wrote_is_text_wherever_it_stands() -> None:
    page = Parsed(render(hostile()))
    plain = Parsed(render(example.report()))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    names = {name for _, attributes in page.elements for name in attributes}
    assert names <= {name for _, attributes in plain.elements for name in attributes}
    assert not names & {"src", "href", "onerror"}
    # In heading, title, chart, sample (prompt, expected, twice an answer), data, sources and libraries.
    assert sum(ATTACK in words for words in page.words) >= 12


def test_the_page_forbids_itself_scripts_and_requests() -> None:
    page = Parsed(render(example.report()))
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    assert "script" not in {tag for tag, _ in page.elements}


def test_an_equal_report_gives_equal_bytes() -> None:
    assert render(example.report()) == render(example.report())


def test_a_section_without_content_is_left_out() -> None:
    assert Parsed(render(example.report())).headings() == [
        "figures",
        "signs",
        "curves",
        "samples",
        "data",
        "time",
        "configuration",
        "again",
    ]
    nothing = DataProfile(sources=[], train_examples=0, held_out_examples=0, dropped=0, trained_tokens=0, lengths=[])
    bare = example.report(metrics=Metrics(), charts=[], spans=[], samples=[], profile=nothing, data=[], libraries={})
    assert Parsed(render(bare)).headings() == ["signs", "data", "configuration", "again"]
    without_values = example.report(charts=[example.chart("Gradient norm", [(1, None), (2, float("nan"))])])
    assert "curves" not in Parsed(render(without_values)).headings()


def test_a_sign_stands_with_its_step_and_what_to_do_and_what_was_not_looked_for_is_named() -> None:
    sign = Sign(name="LossSpike", step=1200, message="the training loss was 4")
    words = " ".join(" ".join(Parsed(render(example.report(metrics=Metrics(signs=[sign])))).words).split())
    assert f"LossSpike 1,200 the training loss was 4 {ADVICE['LossSpike']}" in words
    assert "Overfitting was not measured: that takes dataset.eval" in words
    assert "Forgetting was not measured: that takes dataset.general." in words
    well = render(example.report())
    assert "None was seen." in well
    assert "Overfitting was not measured" not in well
    kept = render(example.report(metrics=Metrics(general_loss=1.5, base_general_loss=1.25)))
    assert "Forgetting was not measured" not in kept
    assert "1.25 before training" in kept


def test_a_long_run_stays_a_small_page() -> None:
    page = render(example.report(steps=100_000))
    assert len(page.encode()) < 1_000_000


def test_a_loss_that_rose_is_not_called_better() -> None:
    worse = Metrics(eval_loss=2.5, base_eval_loss=2.0)
    page = render(example.report(metrics=worse))
    assert ('class="note worse up"' in page, 'class="note better' in page) == (True, False)
    assert "2 before training" in page


def test_an_accuracy_that_rose_is_better_and_one_that_stayed_is_neither() -> None:
    page = render(example.report(metrics=Metrics(eval_accuracy=0.75, base_eval_accuracy=0.5)))
    assert ('class="note better up"' in page, 'class="note worse' in page) == (True, False)
    same = render(example.report(metrics=Metrics(eval_accuracy=0.5, base_eval_accuracy=0.5)))
    assert not [words for words in ("note better", "note worse") if f'class="{words}' in same]


def test_a_run_that_went_on_from_an_adapter_is_not_said_to_be_made_again_without_it() -> None:
    report = example.report()
    start = Start(uri="s3://adapters/team-a/first/r1", sha256="ab" * 32)
    further = report.model_copy(
        update={
            "contract": report.contract.model_copy(update={"start": start}),
            "starts": [SourceDigest(uri=start.uri, files=[])],
        }
    )
    page = render(further)
    assert "This job asks for the very same run" not in page
    assert page.count(start.uri) >= 2


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_a_run_of_each_objective_has_a_page(name: ObjectiveName) -> None:
    settings = {"rewards": [{"regex": {"pattern": "^yes$"}}]} if name == "rlhf" else {}
    report = example.report()
    objective = Objective.model_validate({name: settings})
    page = render(report.model_copy(update={"contract": report.contract.model_copy(update={"objective": objective})}))
    assert f"{name}:" in page, "in the configuration"


def test_every_figure_stands_there_as_status_has_it() -> None:
    metrics = example.report().metrics
    words = Parsed(render(example.report())).words
    assert set(metrics.to_wire()) <= set(words)
    assert {"0.512", "18,087,936", "21 GiB", "8 min 32 s", "1.05 %"} <= set(words)


def test_the_share_of_the_optimisers_steps_is_of_the_whole_time() -> None:
    spans = [Span(name="Load", seconds=30.0), Span(name="Steps", seconds=90.0, is_steps=True)]
    page = render(example.report(spans=spans))
    assert "75 % of 2 min were optimiser steps." in page
    assert "all attempts" not in page
    resumed = example.report().metrics.model_copy(update={"resumed_from_step": 80})
    assert "went on from step 80" in render(example.report(metrics=resumed, spans=spans))


def test_no_user_of_an_endpoint_stands_in_the_configuration() -> None:
    contract = runs.contract("s3://out/x", StorageAccess(endpoint="https://me:hunter2@store:9000/path"))
    page = render(example.report(contract=contract))
    assert "hunter2" not in page
    assert "endpoint: https://store:9000/path" in page


def test_who_has_followed_the_run_is_said_and_what_it_lacks() -> None:
    trackers = [
        TrackerState(name="mlflow", run="https://mlflow/#/experiments/1/runs/2"),
        TrackerState(name="wandb", warning="wandb was not reached"),
    ]
    page = render(example.report(trackers=trackers))
    assert "https://mlflow/#/experiments/1/runs/2" in page
    assert "wandb was not reached" in page
    assert 'id="trackers"' not in render(example.report())


def test_of_many_files_some_are_named_and_the_rest_is_counted() -> None:
    page = render(example.report(data=[example.source("s3://datasets/many", MOST_FILES + 60)]))
    assert f"part-{MOST_FILES - 1:05d}" in page
    assert f"part-{MOST_FILES:05d}" not in page
    assert "and 60 more" in page


def test_the_manifest_asks_for_the_very_same_run_whatever_the_profile_says() -> None:
    def profile(**training: Any) -> TuningProfile:
        return TuningProfile.model_validate(
            {
                "apiVersion": "lorikeet.dev/v1alpha1",
                "kind": "TuningProfile",
                "metadata": {"name": "default"},
                "spec": {"storage": {"uri": "s3://elsewhere"}, "defaults": {"training": training}},
            }
        )

    def run(manifest: dict[str, Any], profile: TuningProfile) -> Any:
        return resolve(FineTuneJob.model_validate(manifest), profile, "registry/trainer:1").contract

    asked = {
        "apiVersion": "lorikeet.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "sql", "namespace": "team-a"},
        "spec": {
            "model": ModelSource(uri="hf://org/base").to_wire(),
            "dataset": {"train": [{"uri": "s3://datasets/a.jsonl", "weight": 2.0}], "evalFraction": 0.1},
            "training": {"learningRate": 1e-5, "batchSize": 12},
        },
    }
    first = run(asked, profile(epochs=2.0, loggingSteps=7))
    written = manifest(first)
    assert written is not None
    (again,) = yaml.load_all(written)
    second = run(again, profile(epochs=9.0, warmupRatio=0.2))
    assert (second.run_id, second.output_uri, second.gpus) == (first.run_id, first.output_uri, first.gpus)
    assert second.training == first.training
