"""The contract of a run on this machine is the cluster's, but for what is the machine's own."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from lorikeet_api.contract import RunContract
from lorikeet_cli.problem import Problem
from lorikeet_cli.request import Machine, add_arguments, contract_of, the_job
from lorikeet_operator.finetune.resolve import resolve
from lorikeet_storage.folders import folder_of
from lorikeet_storage.uri import parse
from tests.resources import job, job_body, profile, profile_body
from tests.unit.cli.conftest import Write

OWN = {"allow_cpu", "date", "job_uid"}
"""What depends on machine and day."""


def made(file: Path, *arguments: str) -> RunContract:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument("--output")
    given = parser.parse_args(["-f", str(file), *arguments])
    return contract_of(*the_job(given), Machine.of(given))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"training": {"batchSize": 6}, "method": {"lora": {"rank": 4}}, "output": {"uri": "s3://mine/here/"}},
        {"compute": {"gpus": 0, "terminationGracePeriodSeconds": 30}},
    ],
)
def test_request_and_profile_make_the_contract_that_the_operator_makes(write: Write, spec: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"defaults": {"training": {"epochs": 2}}}
    here = made(write(profile_body(**settings), job_body(**spec)))
    there = resolve(job(**spec), profile(**settings), "trainer:test").contract
    assert here.model_dump(exclude=OWN) == there.model_dump(exclude=OWN)
    assert (here.allow_cpu, here.job_uid) == (True, None)


def test_what_is_set_is_part_of_the_run(write: Write) -> None:
    file = write(profile_body(), job_body())
    assert made(file, "--set", "training.epochs=1").training.epochs == 1
    assert made(file, "--set", "training.epochs=1").run_id != made(file).run_id
    assert made(file, "--set", "training.checkpoints.everySteps=1").run_id == made(file).run_id


def test_a_job_without_a_profile_needs_only_an_output(write: Write, tmp_path: Path) -> None:
    file = write(job_body())
    with pytest.raises(Problem, match=r"output\.uri.*or give --output DIR"):
        made(file)
    contract = made(file, "--output", str(tmp_path / "out"))
    assert folder_of(parse(f"{contract.output_uri}/run"), "output") == tmp_path / "out" / "run"
    assert contract.storage.endpoint is None


def test_a_folder_stands_for_the_output_that_the_request_has(write: Write, tmp_path: Path) -> None:
    contract = made(write(profile_body(), job_body()), "--output", str(tmp_path / "out"))
    assert contract.output_uri == "s3://adapters/team-a/sql-v1"
    assert folder_of(parse(contract.output_uri), "output") == tmp_path / "out"


def test_a_map_is_for_reading_and_moves_no_output(write: Write, tmp_path: Path) -> None:
    contract = made(write(profile_body(), job_body()), "--map", f"s3://adapters={tmp_path}")
    assert folder_of(parse(contract.output_uri), "output") is None
    assert folder_of(parse(contract.output_uri), "model") == tmp_path / "team-a/sql-v1"


def test_an_s3_output_and_endpoint_of_the_command_line_come_first(write: Write) -> None:
    contract = made(write(profile_body(), job_body()), "--output", "s3://own/x", "--s3-endpoint", "http://here:1")
    assert (contract.output_uri, contract.storage.endpoint) == ("s3://own/x", "http://here:1")
    assert folder_of(parse(contract.output_uri), "output") is None


def test_relative_folders_are_those_of_the_shell(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    made(write(job_body()), "--map", "s3://models/=models", "--output", "out")
    assert folder_of(parse("s3://models/tiny"), "model") == tmp_path / "models/tiny"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--map", "s3://models"], "write it as URI=DIR"),
        (["--map", "hf://org/name=."], "write it as URI=DIR"),
        (["--map", "s3://models=/no/such/folder"], "/no/such/folder does not exist"),
        (["--output", __file__], "it is a file"),
        (["--output", "s3://Not A Bucket"], "write it as s3://bucket/path"),
        (["--output", "gs://bucket/path"], "write it as s3://bucket/path"),
        (["--set", "profileRef={name: team-b}"], "TuningProfile team-b is not in these files: add it with -f"),
        (["--set", "training.epoch=1"], r"spec\.training\.epoch: no such field"),
        (["--set", "model={from: {fineTuneJobRef: {name: first}}}"], r"spec\.model\.from names another job"),
        (
            ["--set", "objective={rlhf: {rewards: [{model: {fineTuneJobRef: {name: first}}}]}}"],
            r"spec\.objective\.rlhf\.rewards names another job",
        ),
    ],
)
def test_what_cannot_be_is_said(write: Write, arguments: list[str], message: str) -> None:
    with pytest.raises(Problem, match=message):
        made(write(profile_body(), job_body()), *arguments)


@pytest.mark.parametrize("jobs", [0, 2])
def test_one_job_is_needed(write: Write, jobs: int) -> None:
    with pytest.raises(Problem, match=f"one FineTuneJob is needed, there are {jobs}"):
        made(write(profile_body(), *[job_body(f"job-{number}") for number in range(jobs)]))


def test_a_profile_that_does_not_fit_is_said_as_the_operator_says_it(write: Write) -> None:
    defaults = {"training": {"microBatchSize": 2}}
    with pytest.raises(Problem, match="do not fit together"):
        made(write(profile_body(defaults=defaults), job_body(training={"batchSize": 9})))
