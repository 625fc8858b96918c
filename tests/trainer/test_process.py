"""The real `lorikeet-train`: PID 1's part of the contract, end to end."""

import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime

import pytest

from lorikeet_api.contract import RunRecord
from lorikeet_api.progress import URL_VARIABLE
from lorikeet_trainer.progress import TIMEOUT
from tests.dropping import dropping
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model with random weights and the data."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        yield made


MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"
ENDLESS = {"epochs": 1000.0, "loggingSteps": 1}


def test_two_ranks_train_and_publish_once_and_are_adopted_the_second_time(lab: Lab) -> None:
    contract = lab.contract(
        "lora", MODEL, TRAIN, gpus=2, allow_cpu=True, training={"maxSteps": 4}, dataset={"evalFraction": 0.2}
    )
    started = lab.start(contract)
    code, record, log = started.end()
    assert (code, record["reason"]) == (0, "Published"), log
    assert record["metrics"]["steps"] == 4
    assert record["artifacts"]["uri"] == f"{contract.output_uri}/{contract.run_id}"
    assert "adapter/adapter_model.safetensors" in lab.published(contract)
    events = [line.split("event=")[1].split()[0] for line in log.splitlines() if "event=" in line]
    for event in ("fetch", "import", "render", "load", "step", "eval", "publish", "end"):
        assert event in events
    assert events.count("load") == 1, "only the first rank tells"
    told = [line for line in log.splitlines() if "event=" in line]
    lasted = (moment(told[-1]) - moment(told[0])).total_seconds()
    parts = ("fetch", "tokenize", "load", "step", "checkpoint", "evaluate", "publish")
    assert sum(record["metrics"][f"{part}Seconds"] for part in parts) > 0.75 * lasted, "where the time went"
    again, adopted, log = lab.start(contract).end()
    assert (again, adopted["reason"], adopted["artifacts"]) == (0, "Adopted", record["artifacts"])
    assert "event=import" not in log


def test_a_stop_while_it_publishes_waits_for_the_upload(lab: Lab) -> None:
    """And a store that is away at that moment costs seconds, not the training."""
    contract = lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 1})
    started = lab.start(contract)
    started.await_line("event=save")
    lab.server.stop()
    started.await_line("event=wait")
    started.process.send_signal(signal.SIGTERM)
    lab.server.start()
    code, record, _ = started.end()
    assert (code, record["reason"]) == (0, "Published")
    assert "adapter/adapter_model.safetensors" in lab.published(contract)


def test_an_endpoint_that_drops_packets_slows_no_step(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 400, "epochs": 1000.0, "loggingSteps": 1})
    with dropping() as url:
        monkeypatch.setenv(URL_VARIABLE, url)
        started = lab.start(contract)
        first = last = moment(started.await_line("event=step"))
        for _ in range(399):
            now = moment(started.await_line("event=step"))
            if (now - last).total_seconds() > TIMEOUT / 2:
                started.kill()
                pytest.fail(f"a step took {now - last}")
            last = now
        code, record, _ = started.end()
    assert (code, record["reason"]) == (0, "Published")
    assert (last - first).total_seconds() > TIMEOUT, "it ended before a post would have failed"


def moment(line: str) -> datetime:
    """Return the time of a log line."""
    return datetime.fromisoformat(line.split("time=")[1].split()[0])


def test_a_killed_rank_is_told(lab: Lab) -> None:
    contract = lab.contract("lora", MODEL, TRAIN, training=ENDLESS)
    started = lab.start(contract)
    started.await_line("event=step")
    os.kill(started.rank(), signal.SIGKILL)
    code, record, _ = started.end()
    assert (code, record["reason"], record["retryable"]) == (70, "InternalError", True)
    assert "rank 0 was killed by SIGKILL without a result" in record["message"]
    assert lab.published(contract) == ["run.json"]
    assert RunRecord.model_validate(record).artifacts is None


def test_bad_data_is_found_before_torch_is_loaded(lab: Lab) -> None:
    good = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    uri = lab.put_rows("bad.jsonl", (good * 36 + "{oops\n").encode())
    code, record, log = lab.start(lab.contract("lora", MODEL, uri)).end()
    assert (code, record["reason"], record["retryable"]) == (65, "DataInvalid", False)
    assert "bad.jsonl, line 37: not JSON" in record["message"]
    assert "event=import" not in log
