"""`watch`, `logs` and `report` around a `kubectl` that says what a cluster would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lorikeet_cli.main import UNREAD, main

METRICS = {
    "generalLoss": 1.75,
    "baseGeneralLoss": 1.5,
    "evalLoss": 0.98,
    "baseEvalLoss": 2.5,
    "steps": 20,
    "stepsPercent": 61.4,
    "stepSeconds": 57.3,
    "fetchSeconds": 0.8,
    "tokenizeSeconds": 0.0,
    "loadSeconds": 12.0,
    "checkpointSeconds": 0.1,
    "evaluateSeconds": 27.6,
    "publishSeconds": 0.2,
    "aFigureOfTomorrow": 1,
}
ARTIFACTS = {"uri": "s3://out/sql/ab12", "runId": "ab12", "revision": "12345678", "sha256": "1" * 64, "sizeBytes": 1}


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH whose `kubectl` writes its arguments to `arguments` and prints the file `says`."""
    script = f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\ncat {tmp_path}/says\n[ ! -e {tmp_path}/fails ]\n'
    (tmp_path / "kubectl").write_text(script)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "says").write_text("")
    return tmp_path


def body(phase: str, **status: Any) -> dict[str, Any]:
    return {"kind": "FineTuneJob", "metadata": {"name": "sql"}, "status": {"phase": phase, **status}}


def events(*bodies: dict[str, Any], kind: str = "MODIFIED") -> str:
    return "".join(json.dumps({"type": kind, "object": each}) + "\n" for each in bodies)


RUNNING = body("Running", progress={"percent": 35, "step": 7, "totalSteps": 20, "loss": 1.23456, "etaSeconds": 75})


@pytest.mark.parametrize(("phase", "code"), [("Succeeded", 0), ("Failed", 1)])
def test_a_job_is_watched_to_its_end(kubectl: Path, capsys: pytest.CaptureFixture[str], phase: str, code: int) -> None:
    end = body(phase, message="this is how it ended")
    (kubectl / "says").write_text(events({"kind": "FineTuneJob", "metadata": {}}, RUNNING, end, body("Pending")))
    assert main(["watch", "sql", "-n", "team-a", "--context", "prod"]) == code
    assert capsys.readouterr().out.splitlines() == [
        "Pending",
        "Running  35 %  step 7/20  loss 1.235  0:01:15 left",
        phase,
        "this is how it ended",
    ]
    asked = (kubectl / "arguments").read_text()
    assert asked.startswith("--context prod --namespace team-a get finetunejobs.lorikeet.dev sql -o json --watch")


@pytest.mark.parametrize("command", ["watch", "report"])
def test_a_reader_that_has_seen_enough_is_no_error(kubectl: Path, command: str) -> None:
    end = body("Succeeded", message="published", metrics=METRICS, artifacts=ARTIFACTS)
    (kubectl / "says").write_text(json.dumps(end) if command == "report" else events(RUNNING, end))
    read, write = os.pipe()
    os.close(read)
    asked = [sys.executable, "-m", "lorikeet_cli.main", command, "sql"]
    done = subprocess.run(asked, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (UNREAD, b"")


def test_a_job_that_is_deleted_meanwhile_has_not_succeeded(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "says").write_text(events(RUNNING) + events(RUNNING, kind="DELETED"))
    assert main(["watch", "sql"]) == 1
    assert "FineTuneJob sql was deleted" in capsys.readouterr().out


def test_a_watch_that_the_server_closes_is_begun_again(kubectl: Path) -> None:
    script = (kubectl / "kubectl").read_text()
    end = f"[ $(wc -l < {kubectl}/arguments) -lt 3 ] || cat {kubectl}/end\n"
    (kubectl / "kubectl").write_text(script.replace("[ ! -e", f"{end}[ ! -e"))
    (kubectl / "says").write_text(events(RUNNING))
    (kubectl / "end").write_text(events(body("Succeeded")))
    assert main(["watch", "sql"]) == 0
    assert len((kubectl / "arguments").read_text().splitlines()) == 3


def test_what_kubectl_refuses_is_its_own_message(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "fails").write_text("")
    assert main(["watch", "sql"]) == 1
    assert main(["report", "sql"]) == 1
    told = capsys.readouterr().err
    assert "kubectl could not watch FineTuneJob sql" in told
    assert "kubectl could not get FineTuneJob sql" in told


@pytest.mark.parametrize("arguments", [["watch", "sql"], ["logs", "sql"], ["report", "sql"]])
def test_without_kubectl_it_is_said(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(arguments) == 64
    assert "kubectl is not on the PATH" in capsys.readouterr().err


def test_logs_are_those_of_the_trainer_and_the_exit_code_kubectls(
    kubectl: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (kubectl / "says").write_text("event=step\n")
    assert main(["logs", "sql", "-f", "-n", "team-a"]) == 0
    assert capfd.readouterr().out == "event=step\n"
    assert (kubectl / "arguments").read_text() == "--namespace team-a logs job/sql-train --container trainer --follow\n"
    (kubectl / "fails").write_text("")
    assert main(["logs", "sql"]) == 1


def test_a_report_has_figures_and_place(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kubectl / "says").write_text(json.dumps(body("Succeeded", metrics=METRICS, artifacts=ARTIFACTS)))
    assert main(["report", "sql"]) == 0
    told = capsys.readouterr().out
    assert "loss on held-out examples  0.98, 2.5 before training" in told
    assert "loss on the general set    1.75, 1.5 before training" in told
    assert (
        "where the time went        57.3 s optimiser steps (61 %), 27.6 s evaluation, 12 s loading, 0.8 s fetching,"
        " 0.2 s publishing, 0.1 s checkpoints, 0 s tokens\n"
    ) in told
    assert "published s3://out/sql/ab12, revision 12345678" in told
    assert main(["report", "sql", "--output", str(kubectl / "page.html")]) == 1
    assert "has no report" in capsys.readouterr().err
    assert not (kubectl / "page.html").exists()


def test_a_job_that_has_published_nothing_is_said_with_its_state(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kubectl / "says").write_text(json.dumps(body("Failed", message="line 37 is not JSON")))
    assert main(["report", "sql"]) == 1
    assert "has published nothing (Failed: line 37 is not JSON)" in capsys.readouterr().err
