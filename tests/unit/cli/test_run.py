"""What a user sees of a run, and who may be at it. `tests/trainer/test_cli.py` has real ones."""

import io
import signal
from pathlib import Path

import pytest

from lorikeet_api.contract import Artifacts, Metrics, RunContract, RunRecord, StorageAccess
from lorikeet_api.signs import Sign
from lorikeet_cli import figures, run
from lorikeet_cli.main import main
from lorikeet_cli.problem import Problem
from lorikeet_cli.terminal import Line, bar
from lorikeet_storage.folders import FOLDERS_VARIABLE, use_folders
from lorikeet_storage.publish import check_free
from tests import runs
from tests.resources import job_body
from tests.unit.cli.conftest import Write

LOG = """\
time=1 level=info event=check what=data uri=s3://d/train.jsonl rows=60 seconds=0.1
Loading weights: a library's own words
time=1 level=info event=examples train=50 held_out=10 dropped=1 template=base
time=1 level=info event=step step=5 steps=20 epoch=0.5 loss=1.5
time=1 level=info event=eval step=5 eval_loss=2.25 seconds=1
time=1 level=info event=step step=20 steps=20 epoch=2 loss=1.25
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(out: io.StringIO) -> str:
    kept = io.StringIO()
    run.show(LOG.splitlines(keepends=True), kept, Line(out))
    assert kept.getvalue() == LOG
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_each_step_is_a_line() -> None:
    first, examples, step, evaluation, last = shown(io.StringIO()).splitlines()
    assert first == "data      s3://d/train.jsonl: 60 rows"
    assert examples == "examples  50 to train on, 10 held out, 1 dropped"
    assert step == f"{bar(25)}  step 5/20  loss 1.5"
    assert evaluation == "eval      step 5: loss 2.25"
    assert last.startswith(f"{bar(100)}  step 20/20  loss 1.25  0:00:00 left")


def test_on_a_terminal_the_steps_are_one_line_below_those_that_stay() -> None:
    text = shown(Terminal())
    assert text.count("\n") == 4, "three lines that stay, and the bar's at the end"
    assert text.endswith("\n")
    assert f"\r\x1b[Keval      step 5: loss 2.25\n{bar(25)}" in text


def test_who_follows_a_run_is_said_and_what_it_lacks() -> None:
    lines = [
        "time=1 level=info event=tracking tracker=mlflow run=http://mlflow/#/experiments/1/runs/2\n",
        'time=1 level=warning event=tracking tracker=wandb message="wandb does not take it"\n',
    ]
    out = io.StringIO()
    run.show(lines, io.StringIO(), Line(out))
    first, second = out.getvalue().splitlines()
    assert first == "tracker   mlflow: http://mlflow/#/experiments/1/runs/2"
    assert second == "warning   wandb does not take it"


def test_what_goes_wrong_on_the_way_is_said() -> None:
    lines = [
        'time=1 level=info event=sign sign=LossSpike step=3 message="LossSpike from step 3 on: 9 after 2"\n',
        "time=1 level=info event=early_stop step=40 steps=100 best_step=20\n",
        'time=1 level=error event=stall rank=0 step=7 message="no step was made"\n',
        "time=1 level=info event=eval step=5 eval_loss=-0.5 reward=0.5 kl=0.01 seconds=1\n",
    ]
    out = io.StringIO()
    run.show(lines, io.StringIO(), Line(out))
    assert out.getvalue().splitlines() == [
        "sign      LossSpike from step 3 on: 9 after 2",
        "end       early, after step 40 of 100: the held-out loss falls no longer",
        "stall     no step is made after step 7: the log has the stacks of all threads",
        "eval      step 5: reward 0.5",
    ]


def test_the_figures_say_how_it_was_judged_how_it_ended_and_what_went_wrong() -> None:
    sign = Sign(name="Overfitting", step=20, message="loss 1.5, lowest 1.2")
    judged = Metrics(eval_loss=1.5, base_eval_loss=2.0, eval_accuracy=0.75, test_loss=1.75)
    ended = Metrics(steps=40, planned_steps=100, best_step=20, best_eval_loss=1.2, signs=[sign])
    answers = Metrics(eval_reward=0.5, base_eval_reward=0.25, eval_kl=0.125, eval_length=30, base_eval_length=20)
    assert list(figures.lines(judged)) == [
        "loss on held-out examples  1.5, 2 before training",
        "accuracy on held-out rows  0.75",
        "loss on the test set       1.75",
    ]
    assert list(figures.lines(ended)) == [
        "steps                      40 of 100: ended early, the loss on the held-out examples fell no longer",
        "best step                  20, with a loss of 1.2",
        f"sign that it went wrong    {sign.told}",
    ]
    assert list(figures.lines(answers)) == [
        "reward on held-out prompts 0.5, 0.25 before training",
        "KL divergence there        0.125 nats a token",
        "tokens of an answer there  30, 20 before training",
    ]


def test_a_bar_is_full_at_the_end() -> None:
    assert bar(0) == f"[{'.' * 24}]   0 %"
    assert bar(100) == f"[{'#' * 24}] 100 %"


def test_two_processes_are_never_at_one_run(tmp_path: Path) -> None:
    with (
        run._folder(tmp_path, "ab12") as work,
        pytest.raises(Problem, match="another `lorikeet run` is at this very run"),
        run._folder(tmp_path, "ab12"),
    ):
        pytest.fail("both went in")
    assert not work.trainer.exists(), "what a run has fetched does not stay"
    with run._folder(tmp_path, "ab12"):
        pass


def test_a_work_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match=r"file/ab12 cannot be used \(Not a directory\): name another folder by --work"):
        run._folder(tmp_path / "file", "ab12").__enter__()


TRAINER = """\
import os, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
record = pathlib.Path(given["--termination-log"])
held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
message = "held" if str(record.with_name("lock")) in held else "not held"
record.write_text('{"reason": "Published", "message": "%s"}' % message)
"""


def test_the_trainer_holds_the_lock_too_as_it_may_outlive_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "path" / "lorikeet_trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "supervisor.py").write_text(TRAINER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    with run._folder(tmp_path / "work", "ab12") as work:
        code, record = run._train(runs.contract("s3://out/x", StorageAccess()), work)
    assert (code, record.message) == (0, "held")


def test_signals_that_are_ignored_stay_so() -> None:
    """As under `nohup`, or behind a shell's `&`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run._stoppable() as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == stop.ask
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_result_that_is_there_already_is_said_with_what_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FOLDERS_VARIABLE, "")
    use_folders({}, {"s3://out/x": tmp_path})
    contract = runs.contract("s3://out/x", StorageAccess())
    artifacts = Artifacts(uri="s3://out/x/ab12", run_id="ab12", revision="1", sha256="12", size_bytes=1)
    record = RunRecord(reason="Adopted", message="", artifacts=artifacts)
    run._tell(record, 0, contract, run._Work(tmp_path, 0))
    assert f"to train on what the files hold now, remove {tmp_path / contract.run_id}\n" in capsys.readouterr().out


def test_a_run_without_the_trainers_libraries_is_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda _: None)
    assert main(["run", "-f", str(write(job_body())), "--output", str(tmp_path / "out")]) == 64
    assert "pip install '.[trainer]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_begun_goes_on_with_the_day_of_its_beginning(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Templates print it, and checkpoints of another day are none of this run."""
    told: list[RunContract] = []

    def train(contract: RunContract, work: object) -> tuple[int, RunRecord]:
        check_free(contract)
        told.append(contract)
        return 75, RunRecord(reason="Preempted", message="stopped", retryable=True)

    monkeypatch.setattr(run, "_train", train)
    arguments = ["run", "--output", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "-f"]
    body = job_body()
    body["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z"
    assert main([*arguments, str(write(body))]) == 75
    assert main([*arguments, str(write(job_body()))]) == 75
    assert [contract.date for contract in told] == ["2026-01-02", "2026-01-02"]
    assert "Preempted: stopped\nrun the same command again to go on" in capsys.readouterr().err
    assert main([*arguments, str(write(job_body())), "--set", "training.seed=7"]) == 75
    assert told[-1].date > "2026-01-02"
