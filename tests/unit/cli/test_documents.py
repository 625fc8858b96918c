"""Resources in files, and what `--set` makes of them."""

from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_cli.documents import assign, read
from lorikeet_cli.problem import Problem
from tests.resources import deployment_body, job_body, profile_body
from tests.unit.cli.conftest import Write


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.epochs=1", {"training": {"epochs": 1}}),
        ("training.learningRate=2e-4", {"training": {"learningRate": 0.0002}}),
        ("suspend=true", {"suspend": True}),
        ("dataset.format=text", {"dataset": {"format": "text"}}),
        ("dataset.columns.prompt='1'", {"dataset": {"columns": {"prompt": "1"}}}),
        ("method={lora: {targetModules: [q_proj]}}", {"method": {"lora": {"targetModules": ["q_proj"]}}}),
        ("dataset.train[0].uri=s3://b/x=y", {"dataset": {"train": [{"uri": "s3://b/x=y"}]}}),
        ("dataset.train.0.uri=s3://b/x", {"dataset": {"train": [{"uri": "s3://b/x"}]}}),
    ],
)
def test_a_value_is_yaml_and_what_is_absent_on_the_way_is_made(assignment: str, expected: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"dataset": {"train": []}} if "train" in assignment and "dataset" in assignment else {}
    assign(spec, assignment)
    assert spec == expected


def test_a_list_is_changed_in_place_extended_by_one_and_replaced() -> None:
    spec: dict[str, Any] = {"train": [{"uri": "a", "weight": 1}]}
    assign(spec, "train[0].weight=2")
    assign(spec, "train[1].uri=b")
    assert spec == {"train": [{"uri": "a", "weight": 2}, {"uri": "b"}]}
    assign(spec, "train=[{uri: c}]")
    assign(spec, "train[1]={uri: d}")
    assert spec == {"train": [{"uri": "c"}, {"uri": "d"}]}


def test_an_empty_value_removes_an_item_of_a_list() -> None:
    spec: dict[str, Any] = {"train": [{"uri": "a"}, {"uri": "b"}]}
    assign(spec, "train[0]=")
    assign(spec, "train[1]=")
    assert spec == {"train": [{"uri": "b"}]}


@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_an_empty_value_removes_the_field(nothing: str) -> None:
    spec: dict[str, Any] = {"training": {"epochs": 3, "seed": 1}}
    assign(spec, f"training.epochs={nothing}")
    assign(spec, f"training.absent={nothing}")
    assert spec == {"training": {"seed": 1}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.epochs", "write it as path=value"),
        ("=1", "write it as path=value"),
        ("a..b=1", "write it as path=value"),
        ("training={", "is not YAML"),
        ("train[2].uri=x", "2 is no index of a list of 1"),
        ("train.uri=x", "uri is no index of a list of 1"),
        ("name.first=x", "nothing below 'sql'"),
    ],
)
def test_what_cannot_be_set_is_said(assignment: str, message: str) -> None:
    with pytest.raises(Problem, match=message):
        assign({"train": [{}], "name": "sql"}, assignment)


def test_resources_of_others_in_the_file_are_passed_over(write: Write) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}}
    file = write(secret, profile_body(), job_body(), deployment_body())
    assert [document.kind for document in read([file])] == ["TuningProfile", "FineTuneJob", "ModelDeployment"]
    assert isinstance(read([file])[1].parse(), FineTuneJob)


def test_every_error_has_a_line_with_file_resource_and_field(write: Write) -> None:
    body = job_body(training={"epoch": 3, "batchSize": "8"}, dataset={"train": [{"weight": 0}]})
    with pytest.raises(Problem) as caught:
        read([write(body)])[0].parse()
    lines = [line.partition("finetune.yaml: FineTuneJob sql-v1: ")[2] for line in str(caught.value).splitlines()]
    assert sorted(lines) == [
        "spec.dataset.train[0].uri: is missing",
        "spec.dataset.train[0].weight: Input should be greater than 0",
        "spec.training.batchSize: Input should be a valid integer",
        "spec.training.epoch: no such field",
    ]


def test_a_rule_across_fields_is_said_in_its_own_words(write: Write) -> None:
    body = job_body(method={"lora": {}, "full": {}})
    with pytest.raises(Problem, match=r"FineTuneJob sql-v1: spec\.method: give exactly one method"):
        read([write(body)])[0].parse()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML: .*line 1"),
        ("- 1", "document 1 is no Kubernetes resource"),
        (
            "kind: FineTuneJobs\napiVersion: lorikeet.dev/v1alpha1",
            "kind FineTuneJobs is unknown; known are FineTuneJob",
        ),
    ],
)
def test_a_file_that_is_no_resource_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(Problem, match=rf"(?s)bad\.yaml.*{message}"):
        read([tmp_path / "bad.yaml"])


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"none\.yaml cannot be read: No such file"):
        read([tmp_path / "none.yaml"])
