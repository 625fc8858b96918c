"""The real `lorikeet` on this machine: a run from folders to a folder, stopped and gone on with; rows as text."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lorikeet_api.contract import Manifest
from lorikeet_api.tuningprofile import TuningProfile
from lorikeet_cli.main import main
from lorikeet_operator.finetune.resolve import resolve
from lorikeet_storage.folders import FOLDERS_VARIABLE
from tests import resources
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab
from tests.trainer.probe import PROBE

pytestmark = pytest.mark.trainer

SPEC: dict[str, Any] = {
    "model": {"uri": "s3://models/small"},
    "dataset": {"train": [{"uri": "s3://datasets/train.jsonl"}], "maxLength": 64},
    "method": {"lora": {"rank": 4}},
    "training": {"learningRate": 1e-2, "batchSize": 8, "maxSteps": 48, "epochs": 10, "loggingSteps": 1},
    "output": {"uri": "s3://out/cli"},
}
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A store with a model and data, and the same files in folders."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "models" / "small"), "small")
        (made.root / "datasets").mkdir()
        (made.root / "datasets" / "train.jsonl").write_bytes(tiny.jsonl(tiny.rows()[0]))
        yield made


@dataclass
class Laptop:
    """A machine without S3 and its credentials."""

    lab: Lab
    folder: Path

    def arguments(self, *more: str, **spec: Any) -> list[str]:
        """Return the arguments about a job: the usual one with parts of its spec replaced."""
        path = self.folder / "finetune.yaml"
        path.write_text(json.dumps(resources.job_body("cli", **SPEC | spec)))
        maps = [f"--map=s3://{name}={self.lab.root / name}" for name in ("models", "datasets")]
        return ["-f", str(path), *maps, *more]

    def run(self) -> "subprocess.Popen[str]":
        """Start `lorikeet run` as a shell does in the foreground: in a process group that gets the terminal's Ctrl-C,
        and heeds it even where these tests were started behind an `&`, which has them ignore it."""
        command = ["env", "--default-signal=INT", sys.executable, "-m", "lorikeet_cli.main", "run"]
        command += ["--output", "out", "--work", "work"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return subprocess.Popen(
            [*command, *self.arguments()],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def manifest(self) -> Manifest:
        """Return what the one run has published."""
        (path,) = (self.folder / "out").glob("*/manifest.json")
        return Manifest.model_validate_json(path.read_bytes())


@pytest.fixture
def laptop(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    monkeypatch.setenv(FOLDERS_VARIABLE, "")
    return Laptop(lab, tmp_path)


@pytest.fixture(scope="module")
def in_cluster(lab: Lab) -> Manifest:
    """What the same request publishes to S3 by the contract that the operator makes of it."""
    storage = {"endpoint": lab.server.endpoint}
    profile: TuningProfile = resources.profile(storage=storage, allowCpuFallback=True)
    contract = resolve(resources.job("cli", **SPEC), profile, "trainer:test").contract
    result = lab.run(contract)
    assert result.exit_code == 0, result.record
    return lab.manifest(contract)


def adapter(manifest: Manifest) -> str:
    return next(file.sha256 for file in manifest.files if file.path == ADAPTER)


def test_a_run_that_is_stopped_goes_on_and_publishes_the_adapter_that_the_cluster_would(
    laptop: Laptop, in_cluster: Manifest
) -> None:
    first = laptop.run()
    assert first.stdout is not None
    for line in first.stdout:
        if "step 2/48" in line:
            break
    os.killpg(first.pid, signal.SIGINT)
    told, _ = first.communicate(timeout=60)
    assert first.returncode == 75, told
    assert "stopping" in told
    assert "Preempted: stopped by SIGTERM before the end" in told
    assert "run the same command again to go on" in told
    assert not list((laptop.folder / "out").glob("*/manifest.json"))

    second = laptop.run()
    told, _ = second.communicate(timeout=200)
    assert second.returncode == 0, told
    made = laptop.manifest()
    published = laptop.folder / "out" / made.run_id / "adapter"
    assert "resume    goes on from the checkpoint of step" in told
    assert "step 48/48" in told
    assert f"published {published}, revision " in told
    assert made.run_id == in_cluster.run_id
    assert adapter(made) == adapter(in_cluster)
    assert made.metrics.resumed_from_step is not None
    assert sorted(path.name for path in published.parent.iterdir()) == [
        "adapter", "commit.json", "manifest.json", "metrics.json", "report", "run.json",
    ]  # fmt: skip
    assert not (laptop.folder / "work" / made.run_id / "work").exists()
    base = AutoModelForCausalLM.from_pretrained(laptop.lab.root / "models" / "small")
    before = base(input_ids=PROBE).logits
    after = PeftModel.from_pretrained(base, str(published))(input_ids=PROBE).logits
    assert not torch.allclose(before, after)

    third = laptop.run()
    told, _ = third.communicate(timeout=60)
    assert third.returncode == 0
    assert "nothing was trained" in told


def test_a_run_with_another_value_publishes_to_s3(laptop: Laptop) -> None:
    store = laptop.lab.server
    changed = laptop.arguments("--set", "training.maxSteps=2", "--output", "s3://out/laptop", "--work", "work")
    command = [sys.executable, "-m", "lorikeet_cli.main", "run", *changed, "--s3-endpoint", store.endpoint]
    environment = {**os.environ, **store.env}
    done = subprocess.run(
        command, cwd=laptop.folder, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2" in done.stdout
    (key,) = [key for key in store.keys("out") if key.startswith("laptop/") and key.endswith("/manifest.json")]
    assert f"published s3://out/{key.removesuffix('/manifest.json')}/adapter, revision " in done.stdout
    published = Manifest.model_validate_json(store.client().get_object(Bucket="out", Key=key)["Body"].read())
    assert (published.metrics.steps, published.contract.training.max_steps) == (2, 2)


def test_bad_data_ends_a_run_with_a_sentence_and_its_exit_code(laptop: Laptop) -> None:
    bad = laptop.folder / "bad.jsonl"
    bad.write_text("{oops\n")
    arguments = laptop.arguments("--output", str(laptop.folder / "out"), "--work", str(laptop.folder / "work"))
    command = [sys.executable, "-m", "lorikeet_cli.main", "run", *arguments]
    command += ["--map", f"s3://datasets/train.jsonl={bad}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 65
    assert "DataInvalid: bad.jsonl, line 1: not JSON" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


PREVIEW = """\
=== s3://datasets/two.jsonl
--- two.jsonl, line 1: 27 tokens, 4 trained on
<|im_start|>user
Colour of sky, please.<|im_end|>
<|im_start|>assistant
[[blue<|im_end|>]]

ids: 3 89 286 86 203 289 278 367 16 333 18 4 203 3 337 87 300 88 69 82 88 203 [[70 80 305 4]] 203
--- two.jsonl, line 2: dropped, dataset.maxLength leaves no whole one or no token to train on
2 rows, 1 kept, 1 dropped; 27 tokens, 4 of them trained on; a row has 27 to 27, half of them 27 or less
template: the base model's own chat template (sha256 f950548988e5)
answers that end with a stop token: 100 %
"""


def test_rows_are_shown_as_the_model_sees_them(laptop: Laptop, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": asked, "completion": "blue"} for asked in ("Colour of sky, please.", "?" * 99)]
    (laptop.folder / "two.jsonl").write_bytes(tiny.jsonl(rows))
    dataset = {"train": [{"uri": "s3://datasets/two.jsonl"}], "maxLength": 64}
    more = ["--map", f"s3://datasets/two.jsonl={laptop.folder / 'two.jsonl'}"]
    arguments = ["data", "preview", *laptop.arguments(*more, dataset=dataset)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == PREVIEW
    general = "dataset.general={uri: s3://datasets/two.jsonl}"
    assert main([*arguments, "--color", "--rows", "1", "--set", general]) == 0
    coloured = capsys.readouterr().out
    assert "\x1b[1;32mblue<|im_end|>\x1b[0m" in coloured
    assert "line 2" not in coloured
    assert coloured.count("2 rows, 1 kept, 1 dropped") == 2


def test_a_report_in_s3_is_written_to_a_file(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = lab.server.put("out", "sql/ab12/report/index.html", b"<html>")
    artifacts = {"uri": "s3://out/sql/ab12", "revision": "12345678", "report": uri}
    contract = {"storage": {"endpoint": "http://only-in-the-cluster:7070"}}
    status = {"phase": "Succeeded", "artifacts": artifacts, "resolved": {"contract": contract}}
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f"#!/bin/sh\ncat <<'E'\n{json.dumps({'status': status})}\nE\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    page = tmp_path / "page.html"
    assert main(["report", "sql", "--output", str(page), "--s3-endpoint", lab.server.endpoint]) == 0
    assert page.read_bytes() == b"<html>"
    assert f"report    {uri}" in capsys.readouterr().out
