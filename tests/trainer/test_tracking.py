"""Runs that are followed: by a real MLflow server, by files for Weights & Biases and TensorBoard, by nobody."""

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from lorikeet_api import yaml
from lorikeet_api.contract import REPORT, RunContract, SourceDigest, StorageAccess
from lorikeet_api.tracking import MLFLOW_KEYS, WANDB_KEY, Mlflow, Tracking
from lorikeet_run import log
from lorikeet_trainer import lifecycle
from lorikeet_trainer.lifecycle import Options, Stage
from lorikeet_trainer.points import Point
from lorikeet_trainer.processes import Children
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.state import Layout, Prepared, StageResult
from lorikeet_trainer.trackers import Subject
from lorikeet_trainer.trackers.mlflow import MlflowTracker
from lorikeet_trainer.trackers.tensorboard import EVENTS
from tests import runs
from tests.dropping import dropping
from tests.resources import UID
from tests.s3 import S3Server, free_port
from tests.trackers import MlflowServer, read_events, read_wandb
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"
TRAIN_SHA256 = hashlib.sha256(tiny.jsonl(tiny.rows()[0])).hexdigest()
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
TRAINING = {"epochs": 1000.0, "maxSteps": 80, "loggingSteps": 10, "evalSteps": 20, "checkpoints": {"everySteps": 500}}
Supervise = Callable[[RunContract], tuple[dict[str, Any], list[str]]]
CURVE = {"loss", "learningRate", "gradNorm", "tokensPerSecond", "memoryBytes"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    started = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def lab(server: MlflowServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model with random weights and the data, made while the tracking server starts."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        yield made


def tracked(lab: Lab, training: dict[str, Any] = TRAINING, **trackers: Any) -> RunContract:
    tracking = Tracking.model_validate(trackers)
    return lab.contract("lora", MODEL, TRAIN, training=training, dataset=HELD_OUT, tracking=tracking, job_uid=UID)


@dataclass
class Followed:
    """A run that was stopped on its way and went on, with what it left."""

    contract: RunContract
    stopped: bytes
    """TensorBoard's file in the store when the run was stopped."""
    record: dict[str, Any]
    log: str
    metrics: dict[str, Any]
    """`metrics.json`."""

    def curve(self, name: str) -> list[tuple[int, Any]]:
        """Return one curve of the run."""
        points = [*self.metrics["curve"], *self.metrics["pace"]]
        return [(point["step"], pytest.approx(point[name])) for point in points if name in point]


@pytest.fixture(scope="module")
def followed(lab: Lab, server: MlflowServer) -> Followed:
    """Everything at once: stopped after some steps, then trained to its end."""
    server.wait()
    contract = tracked(
        lab,
        mlflow={"uri": server.url, "experiment": "colours"},
        wandb={"project": "colours", "entity": "painters", "mode": "offline"},
        tensorboard={},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MLFLOW_KEYS[0], "token\n")  # as Secrets often end
        first = lab.start(contract)
    first.await_line("event=step step=20 ")
    first.process.send_signal(signal.SIGTERM)
    code, record, log = first.end()
    assert (code, record["reason"]) == (75, "Preempted"), log
    assert "header" not in record["message"], "the new line is none of the token"
    stopped = lab.fetch(contract, f"live/{EVENTS}")
    code, record, log = lab.start(contract).end()
    assert code == 0, log
    assert record["metrics"]["resumedFromStep"] < 80
    return Followed(contract, stopped, record, log, json.loads(lab.fetch(contract, "metrics.json")))


@pytest.fixture(scope="module")
def run(followed: Followed, server: MlflowServer) -> Run:
    """The one run in MLflow: a resume has opened no second one."""
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("colours")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    return found


def test_mlflow_has_the_whole_curve_once_though_the_run_was_stopped(
    followed: Followed, run: Run, server: MlflowServer
) -> None:
    client = MlflowClient(server.url)
    for name in (*CURVE, "evalLoss"):
        told = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
        assert told == followed.curve(name), name
    assert {step for step, _ in followed.curve("loss")} == {1, *range(10, 81, 10)}
    assert [step for step, _ in followed.curve("evalLoss")] == [20, 40, 60, 80]
    times = [point.timestamp for point in client.get_metric_history(run.info.run_id, "loss")]
    assert times == sorted(times)
    assert times[-1] > times[0]


def test_mlflow_knows_whose_run_it_is_and_what_it_was_trained_with(followed: Followed, run: Run) -> None:
    contract, tags = followed.contract, run.data.tags
    assert (run.info.run_name, run.info.status) == (contract.name, "FINISHED")
    told = [tags[f"lorikeet.{name}"] for name in ("job", "namespace", "jobUid", "runId")]
    assert told == [contract.name, contract.namespace, UID, contract.run_id]
    assert tags["lorikeet.data.0.sha256"] == TRAIN_SHA256
    assert "kind: FineTuneJob" in tags["mlflow.note.content"]
    assert run.data.params["training.learningRate"] == "0.01"
    assert run.data.params["dataset.train.0.uri"] == TRAIN
    assert json.loads(run.data.params["method.lora.targetModules"])[0] == "q_proj"
    assert run.data.metrics["final/evalLoss"] == pytest.approx(followed.record["metrics"]["evalLoss"])


def test_mlflow_keeps_the_report_and_the_request_as_artifacts(
    lab: Lab, followed: Followed, run: Run, server: MlflowServer
) -> None:
    client = MlflowClient(server.url)
    report = client.download_artifacts(run.info.run_id, REPORT, str(lab.root))
    assert Path(report).read_bytes() == lab.fetch(followed.contract, REPORT)
    request = yaml.load(Path(client.download_artifacts(run.info.run_id, "finetunejob.yaml", str(lab.root))).read_text())
    assert (request["kind"], request["metadata"]["name"]) == ("FineTuneJob", followed.contract.name)
    assert request["spec"]["model"]["uri"] == MODEL


def test_steps_that_a_killed_attempt_has_told_are_not_told_again(server: MlflowServer, tmp_path: Path) -> None:
    server.wait()
    settings = Mlflow(uri=server.url, experiment="killed")
    contract = runs.contract("s3://out/x", StorageAccess(), job_uid=UID)
    subject = Subject(contract, Prepared(model=SourceDigest(uri=MODEL, files=[]), data=[]), Layout(tmp_path))

    def attempt(steps: int, began: float) -> str:
        tracker = MlflowTracker(settings, subject)
        where = tracker.begin()
        tracker.tell([Point(step=step, time=began + step, values={"loss": 1.0}) for step in range(1, steps + 1)])
        return where

    assert attempt(5, 1000.0) == attempt(8, 2000.0)
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    told = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.timestamp) for point in told] == [
        *((step, 1_000_000 + 1000 * step) for step in range(1, 6)),
        *((step, 2_000_000 + 1000 * step) for step in range(6, 9)),
    ]


def test_a_report_that_the_server_cannot_store_leaves_the_run_finished(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError("no room")

    server.wait()
    log.set_up()
    monkeypatch.setattr(MlflowClient, "log_text", full)
    contract = runs.contract("s3://out/x", StorageAccess(), job_uid=UID)
    layout = Layout(tmp_path)
    (layout.output / REPORT).parent.mkdir(parents=True)
    (layout.output / REPORT).write_text("a page")
    subject = Subject(contract, Prepared(model=SourceDigest(uri=MODEL, files=[]), data=[]), layout)
    tracker = MlflowTracker(Mlflow(uri=server.url, experiment="full"), subject)
    where = tracker.begin()
    tracker.end("published")
    assert MlflowClient(server.url).get_run(where.rpartition("/")[2]).info.status == "FINISHED"
    told = capsys.readouterr().out
    assert told.count("level=warning") == 2, "of the request and of the report"
    assert f"{REPORT} is not among its artifacts: no room" in told


@pytest.fixture
def supervise(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Supervise:
    """The supervisor and its trackers as they are, its stages in this process, which has torch already."""

    def run_here(stage: Stage, contract: RunContract, options: Options, children: Children) -> StageResult:
        return run_stage(stage, options.contract, Layout(options.work))

    def supervise(contract: RunContract) -> tuple[dict[str, Any], list[str]]:
        termination = lab.root / "termination"
        lifecycle.run(Options(lab.write(contract), lab.layout(contract).model.parent, termination), Children())
        return json.loads(termination.read_bytes()), capsys.readouterr().out.splitlines()

    monkeypatch.setattr(lifecycle, "_run_stage", run_here)
    return supervise


def test_an_adopted_result_is_told_nobody(
    followed: Followed, run: Run, server: MlflowServer, supervise: Supervise
) -> None:
    record, log = supervise(followed.contract)
    assert record["reason"] == "Adopted"
    assert not [line for line in log if "event=tracking" in line]
    assert MlflowClient(server.url).get_run(run.info.run_id).info.end_time == run.info.end_time


def test_tensorboard_has_the_whole_curve_when_it_is_published_and_what_there_was_when_it_was_stopped(
    lab: Lab, followed: Followed
) -> None:
    def scalars(data: bytes, name: str) -> list[tuple[int, Any]]:
        values = [(event.step, value) for event in read_events(data) for value in event.summary.value]
        return [(step, value.simple_value) for step, value in values if value.tag == name]

    assert not [name for name in lab.published(followed.contract) if name.startswith("live/")]
    published = lab.fetch(followed.contract, EVENTS)
    for name in (*CURVE, "evalLoss"):
        assert scalars(published, name) == followed.curve(name), name
        assert scalars(followed.stopped, name), name
    whole = scalars(published, "loss")
    before = scalars(followed.stopped, "loss")
    assert before == whole[: len(before)]
    assert scalars(published, "final/trainLoss") == [(80, pytest.approx(followed.record["metrics"]["trainLoss"]))]


def test_tensorboard_tells_whose_run_it_is_and_what_it_was_trained_with(lab: Lab, followed: Followed) -> None:
    events = read_events(lab.fetch(followed.contract, EVENTS))
    values = [value for event in events for value in event.summary.value]
    (told,) = [value.tensor.string_val[0].decode() for value in values if value.tag == "run/text_summary"]
    assert f"- jobUid: `{UID}`" in told
    assert f"- data.0.sha256: `{TRAIN_SHA256}`" in told
    assert "kind: FineTuneJob" in told
    assert f"uri: {MODEL}" in told


def test_weights_and_biases_files_have_the_whole_curve_and_the_request(lab: Lab, followed: Followed) -> None:
    (name,) = [name for name in lab.published(followed.contract) if name.endswith(".wandb")]
    assert name.startswith("wandb/offline-run-")
    records = read_wandb(lab.fetch(followed.contract, name))
    steps: dict[int, dict[str, float]] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            steps.setdefault(record.history.step.num, {}).update(items)
    assert [(step, items["loss"]) for step, items in steps.items() if "loss" in items] == followed.curve("loss")
    assert [(step, items["evalLoss"]) for step, items in steps.items() if "evalLoss" in items] == followed.curve(
        "evalLoss"
    )
    (begun,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (begun.entity, begun.project, begun.display_name) == ("painters", "colours", followed.contract.name)
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["training"]["learningRate"] == 0.01
    assert config["lorikeet"]["jobUid"] == UID
    assert config["lorikeet"]["data.0.sha256"] == TRAIN_SHA256
    assert "kind: FineTuneJob" in begun.notes


def test_a_run_that_all_have_followed_ends_without_a_warning(lab: Lab, followed: Followed) -> None:
    assert "lacks" not in followed.record["message"]
    assert "level=warning" not in followed.log
    page = lab.fetch(followed.contract, REPORT).decode()
    assert f"<dt>tensorboard</dt><dd>{followed.contract.output_uri}/{followed.contract.run_id}</dd>" in page
    assert "/#/experiments/" in page


def test_trackers_that_refuse_or_never_answer_cost_neither_run_nor_step(
    lab: Lab, supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WANDB_KEY, "0" * 40)
    monkeypatch.setattr(lifecycle, "FINISH_SECONDS", 8.0)
    away = f"http://127.0.0.1:{free_port()}"
    with dropping() as silent:
        contract = tracked(
            lab,
            {**TRAINING, "loggingSteps": 1},
            mlflow={"uri": silent},
            wandb={"project": "p", "baseUrl": away, "secretRef": {"name": "key"}},
        )
        record, log = supervise(contract)
    assert record["reason"] == "Published"
    moments = [moment(line) for line in log if "event=step" in line]
    assert len(moments) == 80
    slowest = max((after - before).total_seconds() for before, after in pairwise(moments))
    assert slowest < 2.0, "a request is given up after five seconds"
    assert (moment(log[-1]) - moments[-1]).total_seconds() < 30
    page = lab.fetch(contract, REPORT).decode()
    for name in ("mlflow", "wandb"):
        assert f"{name} was not reached and has nothing of the run: " in record["message"]
        assert f"{name} was not reached and has nothing of the run: " in page
        assert f"; correct tracking.{name} or its Secret" in record["message"]


def moment(line: str) -> datetime:
    """Return the time of a log line."""
    return datetime.fromisoformat(line.split("time=")[1].split()[0])
