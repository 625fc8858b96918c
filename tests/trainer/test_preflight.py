"""What is known before a GPU is asked for, and how it is said: `lorikeet-agent` against a real S3 server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorikeet_agent import main, preflight
from lorikeet_api.contract import RunContract, RunRecord
from lorikeet_api.names import Task
from lorikeet_trainer.stage import run_stage
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

pytestmark = pytest.mark.trainer
MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"
PAIR = {"prompt": "What colour is coal?", "completion": "black"}


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model, one without a tokenizer, and data."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        folder = tiny.write_model(made.root / "small")
        made.put_folder(folder, "small")
        made.put_folder(folder, "moving")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        made.put_folder(folder, "mute")
        yield made


def check(contract: RunContract, tmp_path: Path, task: Task = "preflight") -> tuple[int, RunRecord]:
    """Run the agent in this process; return its exit code and record."""
    log, file = tmp_path / "termination", tmp_path / "run.json"
    file.write_text(json.dumps(contract.to_wire()))
    code = main.run(task, file, log)
    return code, RunRecord.model_validate_json(log.read_text())


def test_a_sound_run_is_pinned_and_its_folder_taken(lab: Lab, tmp_path: Path) -> None:
    contract = lab.contract("lora", MODEL, TRAIN)
    code, record = check(contract, tmp_path)
    assert (code, record.reason) == (0, "Checked"), record.message
    assert "60 rows of data (every row), rendered with the base model's own chat template" in record.message
    assert record.pins is not None
    assert len(record.pins) == 2
    assert {name.partition("/")[0] for name in lab.published(contract)} == {"run.json", "tokens"}
    assert check(contract, tmp_path)[1].pins == record.pins


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"model": "s3://models/nothing"}, "ModelNotFound", "s3://models/nothing"),
        ({"model": "s3://models/mute"}, "ModelInvalid", "tokenizer"),
        ({"train": "s3://datasets/nothing.jsonl"}, "DataNotFound", "s3://datasets/nothing.jsonl"),
        ({"train": "s3://nowhere/train.jsonl"}, "DataNotFound", "nowhere"),
        ({"dataset": {"format": "completion", "columns": {"prompt": "question"}}}, "DataInvalid", "question"),
        ({"dataset": {"maxLength": 8, "overlong": "fail"}}, "DataInvalid", "maxLength"),
        ({"dataset": {"maxLength": 8}}, "DataInvalid", "no training example is left: of all 60 maxLength 8"),
        ({"dataset": {"maxLength": 8, "overlong": "truncate"}}, "DataInvalid", "no training example is left"),
        ({"dataset": {"test": {"uri": "s3://datasets/nothing.jsonl"}}}, "DataNotFound", "s3://datasets/nothing.jsonl"),
        ({"training": {"batchSize": 3}, "gpus": 2}, "InvalidContract", "2 GPUs"),
        ({"output": "s3://nowhere/x"}, "StorageRefused", "nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else None,
)
def test_what_is_wrong_is_said(lab: Lab, tmp_path: Path, changes: dict[str, Any], reason: str, words: str) -> None:
    arguments = {"model": MODEL, "train": TRAIN, **changes}
    output = arguments.pop("output", None)
    contract = lab.contract("lora", arguments.pop("model"), arguments.pop("train"), **arguments)
    if output is not None:
        contract = contract.model_copy(update={"output_uri": output})
    code, record = check(contract, tmp_path)
    assert (record.reason, code in (64, 65), record.retryable) == (reason, True, False), record
    assert words in record.message


def test_a_general_set_is_read_by_rules_of_its_own(lab: Lab, tmp_path: Path) -> None:
    words = lab.put_rows("words.jsonl", [{"words": "coal is black"}] * 8)
    general = {"uri": lab.put_rows("general.jsonl", [PAIR, {**PAIR, "completion": "black " * 99}])}
    own = {"format": "text", "columns": {"text": "words"}, "trainOn": "all", "overlong": "fail"}
    code, record = check(lab.contract("lora", MODEL, words, dataset={**own, "general": general}), tmp_path)
    assert (code, record.reason) == (0, "Checked"), record.message
    assert record.message.endswith("10 rows of data (every row), rendered with no chat template: the texts are plain")
    assert len(record.pins or []) == 3
    long = {"uri": lab.put_rows("long-general.jsonl", [{**PAIR, "prompt": "coal " * 99}])}
    code, record = check(lab.contract("lora", MODEL, words, dataset={**own, "general": long}), tmp_path)
    assert (code, record.reason) == (65, "DataInvalid")
    assert "no general example is left: of all 1 maxLength 64" in record.message


def test_a_store_that_is_away_is_said_at_once_and_tried_again(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "PATIENCE", 0.5)
    contract = lab.contract("lora", MODEL, TRAIN, storage=type(lab.server.access)(endpoint="http://127.0.0.1:9"))
    code, record = check(contract, tmp_path)
    assert (code, record.reason, record.retryable) == (70, "StorageUnreachable", True)


def test_of_a_large_file_the_head_is_read(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("WHOLE", 2000), ("HEAD", 1000), ("DATA", 2000)):
        monkeypatch.setattr(preflight, name, size)
    uri = lab.put_rows("large.jsonl", [PAIR] * 200)
    _, record = check(lab.contract("lora", MODEL, uri), tmp_path)
    assert "(a sample)" in record.message
    long = lab.put_rows("long.jsonl", [{**PAIR, "completion": "black " * 1000}])
    _, record = check(lab.contract("lora", MODEL, long), tmp_path)
    assert record.reason == "Checked", "its first row is longer than the head"
    wrong = lab.put_rows("wrong.jsonl", tiny.jsonl([PAIR] * 3) + b"{oops\n" + tiny.jsonl([PAIR] * 200))
    code, record = check(lab.contract("lora", MODEL, wrong), tmp_path)
    assert code == 65
    assert "wrong.jsonl, line 4: not JSON" in record.message


def test_a_finished_run_is_adopted_and_its_lost_record_recovered(lab: Lab, tmp_path: Path) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 1})
    code, record = check(contract, tmp_path, "recover")
    assert (code, record.reason) == (64, "OutputConflict")
    trained = lab.run(contract).record
    assert trained is not None
    ends: dict[Task, str] = {"preflight": "Adopted", "recover": "Published"}
    for task, reason in ends.items():
        code, record = check(contract, tmp_path, task)
        assert (code, record.reason, record.artifacts) == (0, reason, trained.artifacts)
        assert record.metrics == trained.metrics


def test_a_job_that_goes_on_with_an_unfinished_run_owns_it(lab: Lab, tmp_path: Path) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, job_uid="first")
    check(contract, tmp_path)
    second = contract.model_copy(update={"job_uid": "second"})
    check(second, tmp_path)
    assert "is left as it is" in check(contract, tmp_path, "cleanup")[1].message
    assert check(second, tmp_path, "cleanup")[1].message.startswith("deleted")


def test_a_foreign_file_in_the_way_is_refused(lab: Lab, tmp_path: Path) -> None:
    contract = lab.contract("lora", MODEL, TRAIN)
    lab.server.put("out", f"{contract.output_uri.removeprefix('s3://out/')}/{contract.run_id}/notes.txt", b"mine")
    code, record = check(contract, tmp_path)
    assert (code, record.reason) == (64, "OutputConflict")
    assert "notes.txt" in record.message


@pytest.mark.parametrize("what", ["data", "model"])
def test_a_source_that_changed_since_is_refused_by_the_trainer(lab: Lab, tmp_path: Path, what: str) -> None:
    contract = lab.contract("lora", "s3://models/moving", lab.put_rows("moving.jsonl", [PAIR] * 8))
    _, record = check(contract, tmp_path)
    assert record.pins is not None, record.message
    pinned = contract.model_copy(update={"pins": record.pins})
    assert run_stage("prepare", lab.write(pinned), lab.layout(pinned)).exit_code == 0
    if what == "data":
        lab.put_rows("moving.jsonl", [PAIR] * 9)
    else:
        lab.server.put("models", "moving/generation_config.json", b'{"eos_token_id": 3}')
    result = run_stage("prepare", lab.write(pinned), lab.layout(pinned))
    assert result.record is not None
    assert (result.exit_code, result.record.reason) == (65, "SourceChanged")


def test_three_rows_are_enough_to_be_checked(lab: Lab, tmp_path: Path) -> None:
    _, record = check(lab.contract("lora", MODEL, lab.put_rows("three.jsonl", [PAIR] * 3)), tmp_path)
    assert record.reason == "Checked"
    same = lab.contract("lora", MODEL, lab.put_rows("three.jsonl", [PAIR] * 3), dataset={"evalFraction": 0.5})
    code, record = check(same, tmp_path)
    assert (code, record.reason) == (65, "DataInvalid")
    assert "two different examples" in record.message


def test_a_cleaned_up_run_leaves_nothing_but_what_others_made(lab: Lab, tmp_path: Path) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 1, "checkpoints": {"afterSuccess": "keep"}})
    namesake = contract.model_copy(update={"job_uid": "another"})
    assert lab.run(contract).exit_code == 0
    lab.server.put("out", contract.output_uri.removeprefix("s3://out/") + "/notes.txt", b"mine")
    code, record = check(namesake, tmp_path, "cleanup")
    assert (code, record.reason) == (0, "Deleted")
    assert "was made for team-a/sql-v1, uid None" in record.message
    assert "manifest.json" in lab.published(contract)
    _, record = check(contract, tmp_path, "cleanup")
    assert record.message.startswith(f"deleted {contract.output_uri}/{contract.run_id}")
    prefix = contract.output_uri.removeprefix("s3://out/")
    assert [key for key in lab.server.keys("out") if key.startswith(prefix + "/")] == [f"{prefix}/notes.txt"]
    _, record = check(contract, tmp_path, "cleanup")
    assert "holds nothing" in record.message
