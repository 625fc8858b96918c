"""What `lorikeet validate` finds, and that it needs no torch for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorikeet_cli.main import main
from tests.resources import deployment_body, job_body, profile_body
from tests.unit.cli.conftest import Write


def rewarded(*rewards: dict[str, Any]) -> dict[str, Any]:
    """Return an objective rlhf by a reward model of another job, and by more."""
    return {"rlhf": {"rewards": [{"model": {"fineTuneJobRef": {"name": "judge"}}}, *rewards]}}


def of_16(objective: dict[str, Any]) -> dict[str, Any]:
    return {"objective": objective, "training": {"batchSize": 16}}


def test_sound_resources_are_told_with_what_was_read(
    write: Write, sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(profile_body(), job_body(training={"learningRate": 0.01}), deployment_body())
    assert main(["validate", "-f", str(file), *sources]) == 0
    told = capsys.readouterr().out
    assert f"{file}: TuningProfile default: ok\n" in told
    assert f"{file}: ModelDeployment assistant: ok\n" in told
    assert f"{file}: FineTuneJob sql-v1: ok, run " in told
    assert "data: s3://datasets/sql/train.jsonl: 3 rows" in told
    assert "batch: 16 examples a step, as many as the GPU has memory for at a time" in told
    assert "warning: learningRate 0.01 is unusual" in told


def test_every_document_is_checked_and_the_first_failure_counts(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(profile_body(allowCpu=True), job_body(training={"epoch": 1}), deployment_body(routes=1))
    assert main(["validate", "--offline", "-f", str(file)]) == 64
    told = capsys.readouterr().out
    assert "TuningProfile default: spec.allowCpu: no such field" in told
    assert "FineTuneJob sql-v1: spec.training.epoch: no such field" in told
    assert "ModelDeployment assistant: spec.routes: " in told


def test_a_bad_row_is_named_by_file_and_line(
    write: Write, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "datasets/sql/train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 300 + "{oops\n")
    assert main(["validate", "-f", str(write(job_body())), *sources]) == 65
    assert "FineTuneJob sql-v1: DataInvalid: train.jsonl, line 301: not JSON" in capsys.readouterr().out


def test_rows_that_are_all_the_same_cannot_be_split(
    write: Write, sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    body = job_body(dataset={"train": [{"uri": "s3://datasets/sql/train.jsonl"}], "evalFraction": 0.1})
    assert main(["validate", "-f", str(write(body)), *sources]) == 65
    assert "evalFraction needs at least two different examples" in capsys.readouterr().out


def test_a_test_set_makes_no_two_different_examples_to_split(
    write: Write, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "datasets/sql/test.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    train, test = ({"uri": f"s3://datasets/sql/{name}.jsonl"} for name in ("train", "test"))
    body = job_body(dataset={"train": [train], "evalFraction": 0.1, "test": test})
    assert main(["validate", "-f", str(write(body)), *sources]) == 65
    assert "evalFraction needs at least two different examples" in capsys.readouterr().out


def test_a_general_set_is_read_as_sft_reads_rows_whatever_is_trained(
    write: Write, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, general = tmp_path / "datasets/pairs.jsonl", tmp_path / "datasets/general.jsonl"
    pairs.write_text('{"asked": "a", "chosen": "b", "rejected": "c"}\n')
    general.write_text('{"text": "The sky is blue."}\n' * 2)
    train, kept = ({"uri": f"s3://datasets/{file.name}"} for file in (pairs, general))
    dataset = {"train": [train], "general": kept, "format": "preference", "columns": {"prompt": "asked"}}
    file = write(job_body(objective={"dpo": {}}, method={"lora": {}}, dataset=dataset))
    assert main(["validate", "-f", str(file), *sources]) == 0
    assert "data: s3://datasets/general.jsonl: 2 rows" in capsys.readouterr().out
    general.write_text('{"asked": "a"}\n')
    assert main(["validate", "-f", str(file), *sources]) == 65
    told = capsys.readouterr().out
    assert "general.jsonl, line 1: objective sft takes no rows with these columns: asked;" in told
    assert "dataset.columns maps other names, but those of a general set" in told


def test_a_model_that_is_not_there_and_one_that_is_none(
    write: Write, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "models/smollm2-135m"
    (model / "config.json").write_text("[]")
    assert main(["validate", "-f", str(write(job_body())), *sources]) == 64
    (model / "config.json").unlink()
    assert main(["validate", "-f", str(write(job_body())), *sources]) == 64
    (model / "model.safetensors").unlink()
    assert main(["validate", "-f", str(write(job_body())), *sources]) == 64
    told = capsys.readouterr().out
    assert "ModelInvalid: config.json of s3://models/smollm2-135m is no use" in told
    assert "config.json is missing" in told
    assert "ModelNotFound: " in told


def test_examples_that_may_be_longer_than_the_model_takes_are_warned_about(
    write: Write, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models/smollm2-135m/config.json").write_text('{"text_config": {"max_position_embeddings": 512}}')
    assert main(["validate", "-f", str(write(job_body())), *sources]) == 0
    assert "warning: dataset.maxLength is 2048, and the model has 512 positions" in capsys.readouterr().out


LLAMA = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_a_run_that_does_not_fit_into_a_gpu_is_told_what_to_lower(
    write: Write, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "models/smollm2-135m"
    (model / "config.json").write_text(json.dumps(LLAMA))
    with (model / "model.safetensors").open("wb") as weights:
        weights.truncate(2 * 6_738_415_616)
    asked = ["validate", "-f", str(write(job_body(method={"lora": {}}))), *sources]
    assert main(asked) == main([*asked, "--gpu-memory", "24"]) == 0
    assert main([*asked, "--gpu-memory", "12"]) == 66
    told = capsys.readouterr().out
    assert "memory: by estimate 14.9 GiB with one example at a time on each GPU\n" in told
    assert "memory: by estimate 14.9 GiB with one example at a time on each GPU, which has 24\n" in told
    assert "OutOfMemory: the run needs by estimate 14.9 GiB" in told
    assert "on each GPU, which has 12: lower training.microBatchSize or dataset.maxLength" in told


def test_of_a_run_without_a_gpu_no_memory_is_told(
    write: Write, sources: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "-f", str(write(job_body())), *sources]) == 0
    assert "memory: not known for a model with such a config.json" in capsys.readouterr().out
    assert main(["validate", "-f", str(write(job_body(compute={"gpus": 0}))), *sources]) == 0
    assert "memory" not in capsys.readouterr().out


def test_a_base_from_another_job_is_left_to_the_cluster(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    body = job_body(model={"from": {"fineTuneJobRef": {"name": "first"}}})
    assert main(["validate", "-f", str(write(body))]) == 0
    assert "ok, but for the data: a cluster alone knows what FineTuneJob first has made" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (of_16(rewarded({"regex": {"pattern": "(unclosed"}})), "rewards[1].regex.pattern is no regular"),
        (of_16(rewarded({"jsonSchema": '{"type": 5}'})), "rewards[1].jsonSchema is no JSON Schema"),
        ({"objective": rewarded()}, "make it a multiple of objective.rlhf.numGenerations (it is 12)"),
        ({"objective": {"kto": {}}, "training": {"batchSize": 1}}, "objective kto compares each answer"),
    ],
)
def test_what_is_wrong_with_a_request_is_found_though_another_job_is_needed(
    write: Write, capsys: pytest.CaptureFixture[str], spec: dict[str, Any], message: str
) -> None:
    profile = profile_body(defaults={"training": {"batchSize": 12}})
    body = job_body(model={"from": {"fineTuneJobRef": {"name": "first"}}}, **spec)
    assert main(["validate", "-f", str(write(profile, body))]) == 64
    assert message in capsys.readouterr().out


def test_offline_no_source_is_opened(write: Write) -> None:
    assert main(["validate", "--offline", "-f", str(write(job_body()))]) == 0


def test_files_without_a_resource_of_ours_are_an_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3"}}
    assert main(["validate", "-f", str(write(secret))]) == 64
    assert "no resource of Lorikeet's" in capsys.readouterr().err


def test_torch_is_not_imported(write: Write, sources: list[str]) -> None:
    file = write(profile_body(), job_body())
    code = "import sys; from lorikeet_cli.main import main; code = main(sys.argv[1:]); " \
        "print({'torch', 'transformers'} & sys.modules.keys()); sys.exit(code)"  # fmt: skip
    arguments = [sys.executable, "-c", code, "validate", "-f", str(file), *sources]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"
