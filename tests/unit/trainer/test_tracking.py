"""Trackers' points, the threads that bring trackers up to date, and the supervisor's half: all without a server."""

import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest

from lorikeet_api.contract import FileDigest, Metrics, RunContract, RunRecord, SourceDigest, StorageAccess
from lorikeet_api.signs import Sign
from lorikeet_api.tracking import MLFLOW_KEYS, WANDB_KEY
from lorikeet_api.tracking import Tracking as Wanted
from lorikeet_run import log
from lorikeet_storage.errors import Unreachable
from lorikeet_storage.folders import FOLDERS_VARIABLE, use_folders
from lorikeet_trainer import lifecycle, teller
from lorikeet_trainer.lifecycle import environment
from lorikeet_trainer.points import Feed, Point, Reader, points_of
from lorikeet_trainer.processes import Children, Command
from lorikeet_trainer.state import Ending, Layout, LossPoint, MetricsFile, PacePoint, Prepared, Tracked
from lorikeet_trainer.teller import Teller
from lorikeet_trainer.track import follow
from lorikeet_trainer.trackers import Lost, Subject, Tracker
from lorikeet_trainer.trackers.keys import trim_keys
from lorikeet_trainer.trackers.tensorboard import EVENTS, TensorBoardTracker
from lorikeet_trainer.trackers.tracker import flat, numbers
from lorikeet_trainer.tracking import Tracking
from tests import runs
from tests.trackers import read_events

CURVE = [
    LossPoint(step=1, loss=3.0, learning_rate=0.1, figures={"margin": 0.5}),
    LossPoint(step=2, eval_loss=2.5, repeated=[0.0, 0.5]),
    LossPoint(step=2, loss=2.0),
]
PACE = [PacePoint(step=step, tokens_per_second=7.0, memory_bytes=9, time=100.0 + step) for step in (1, 2)]
POINTS = [
    Point(
        step=1,
        time=101.0,
        values={"loss": 3.0, "learningRate": 0.1, "margin": 0.5, "tokensPerSecond": 7.0, "memoryBytes": 9.0},
    ),
    Point(step=2, time=101.0, values={"evalLoss": 2.5}),
    Point(step=2, time=102.0, values={"loss": 2.0, "tokensPerSecond": 7.0, "memoryBytes": 9.0}),
]
FIX = "; correct tracking.mlflow or its Secret, or let the run reach its server"


def test_points_have_the_names_of_metrics_json() -> None:
    assert points_of(CURVE, PACE) == POINTS


def test_what_is_read_beside_a_run_is_what_is_written_each_point_once(tmp_path: Path) -> None:
    feed, reader = Feed(tmp_path / "points.jsonl"), Reader(tmp_path / "points.jsonl")
    assert reader.fresh() == []
    feed.write(CURVE[:1], PACE[:1])
    assert reader.fresh() == POINTS[:1]
    feed.write(CURVE, PACE)
    feed.write(CURVE, PACE)
    assert reader.fresh() == POINTS[1:]
    assert reader.fresh() == []


def test_half_a_point_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    line = json.dumps(POINTS[0].to_wire()) + "\n"
    path.write_text(line[:20])
    reader = Reader(path)
    assert reader.fresh() == []
    path.write_text(line)
    assert reader.fresh() == [POINTS[0]]


def test_a_disk_without_room_costs_the_trackers_alone(tmp_path: Path) -> None:
    feed = Feed(tmp_path / "no such folder" / "points.jsonl")
    feed.write(CURVE, PACE)
    feed.write([*CURVE, *CURVE], PACE)


class Fake(Tracker):
    """Remembers what it is told, and fails as often as it is to."""

    def __init__(self, failures: int = 0, error: type[Exception] = ConnectionError) -> None:
        self.failures, self.error = failures, error
        self.tries = 0
        self.said: list[object] = []

    def _say(self, what: object) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise self.error("connection refused")
        self.said.append(what)

    def begin(self) -> str:
        self._say("begin")
        return "http://tracker/run"

    def tell(self, points: Sequence[Point]) -> None:
        self._say(list(points))

    def finish(self, metrics: Metrics) -> None:
        self._say(metrics)

    def end(self, ending: Ending) -> None:
        self._say(ending)


def settle(one: Teller) -> str | None:
    one.settle(monotonic() + 20)
    return one.state.warning


def test_a_tracker_is_told_everything_once_and_in_order() -> None:
    fake = Fake()
    one = Teller("mlflow", lambda: fake)
    one.add(POINTS)
    one.settle(monotonic() + 20)
    one.finish(Metrics(steps=2))
    assert settle(one) is None
    one.end("published")
    assert settle(one) is None
    assert fake.said == ["begin", POINTS, Metrics(steps=2), "published"]
    assert one.state.run == "http://tracker/run"


def test_a_tracker_that_comes_back_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller, "_FIRST_PAUSE", 0.01)
    fake = Fake(failures=4)
    one = Teller("mlflow", lambda: fake)
    one.add(POINTS)
    one.settle(monotonic() + 20)
    one.end("stopped")
    assert settle(one) is None
    assert fake.said == ["begin", POINTS, "stopped"]


def test_a_tracker_that_stays_away_is_given_up_once_the_run_waits_for_it() -> None:
    fake = Fake(failures=99)
    one = Teller("mlflow", lambda: fake)
    one.add(POINTS)
    one.finish(Metrics(steps=2))
    before = monotonic()
    warning = settle(one)
    assert monotonic() - before < 10
    assert warning == f"mlflow was not reached and has nothing of the run: connection refused{FIX}"
    assert fake.tries == 2
    one.end("published")
    assert settle(one) == warning
    assert fake.tries == 2


def test_points_that_a_tracker_lacks_are_counted() -> None:
    class Full(Fake):
        def tell(self, points: Sequence[Point]) -> None:
            raise OSError("no room")

    one = Teller("wandb", Full)
    one.add(POINTS)
    one.finish(Metrics(steps=2))
    assert settle(one) == "wandb lacks 3 of the 3 points of metrics.json: no room"


def test_a_tracker_that_lacks_the_figures_alone_lacks_no_point() -> None:
    class Full(Fake):
        def finish(self, metrics: Metrics) -> None:
            raise OSError("no room")

    one = Teller("tensorboard", Full)
    one.add(POINTS)
    one.finish(Metrics(steps=2))
    assert settle(one) == "tensorboard has not got the run's figures, or its files: no room"
    one.end("published")
    assert settle(one) == "tensorboard has not got the run's figures, or its files: no room"


@pytest.mark.parametrize("key", ["open sesame\n", " a\tb", "it's"])
def test_keys_are_trimmed_and_stand_in_nothing_that_is_told(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    for name in (*MLFLOW_KEYS, WANDB_KEY):
        monkeypatch.setenv(name, key)

    class Quoting(Fake):
        def begin(self) -> str:
            raise ValueError(f"invalid header value: {f'Bearer {key}'!r}, {key.strip()}")

    one = Teller("mlflow", Quoting)
    one.finish(Metrics(steps=2))
    told = settle(one)
    assert told is not None
    assert "invalid header value" in told
    assert key.strip() not in told
    assert repr(key.strip())[1:-1] not in told
    trim_keys()
    assert [os.environ[name] for name in (*MLFLOW_KEYS, WANDB_KEY)] == [key.strip()] * 4


def test_figures_are_the_numbers_of_a_run_and_no_signs() -> None:
    sign = Sign(name="Overfitting", step=2, message="the held-out loss rises")
    assert numbers(Metrics(eval_loss=2.5, steps=2, signs=[sign])) == {"final/evalLoss": 2.5, "final/steps": 2.0}


def test_what_is_lost_is_not_tried_again() -> None:
    fake = Fake(failures=1, error=Lost)
    one = Teller("wandb", lambda: fake)
    one.finish(Metrics(steps=2))
    assert settle(one) is not None
    assert fake.tries == 1


def test_a_tracker_that_never_answers_is_waited_for_no_longer_than_is_said() -> None:
    never = threading.Event()

    class Silent(Fake):
        def begin(self) -> str:
            never.wait()
            return ""

    one = Teller("mlflow", Silent)
    one.finish(Metrics(steps=2))
    before = monotonic()
    one.settle(before + 0.2)
    assert 0.2 <= monotonic() - before < 5
    assert one.state.warning == f"mlflow was not reached and has nothing of the run: it does not answer{FIX}"
    never.set()


@pytest.fixture
def contract() -> RunContract:
    return runs.contract("s3://out/x", StorageAccess(), tracking=Wanted.model_validate({"tensorboard": {}}))


def test_a_process_that_hangs_is_ended_and_costs_a_warning(contract: RunContract, tmp_path: Path) -> None:
    record, tracking = RunRecord(reason="Published", message="published x"), Tracking(Children())
    tracking.start(contract, Layout(tmp_path), Command([sys.executable, "-c", "import time; time.sleep(60)"], {}))
    before = monotonic()
    tracking.finish(0.2)
    told = tracking.end(record, "published", 0.2)
    assert monotonic() - before < 10
    assert told.message == "published x; tensorboard was not reached in time"


def test_a_process_that_is_gone_is_not_waited_for(contract: RunContract, tmp_path: Path) -> None:
    record, tracking = RunRecord(reason="Published", message="published x"), Tracking(Children())
    tracking.start(contract, Layout(tmp_path), Command([sys.executable, "-c", ""], {}))
    before = monotonic()
    tracking.finish(30)
    assert "was not reached" in tracking.end(record, "published", 30).message
    assert monotonic() - before < 20


def test_a_stop_shortens_the_wait_for_trackers(
    contract: RunContract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorikeet_trainer.tracking.STOPPED_SECONDS", 0.2)
    children = Children()
    tracking = Tracking(children)
    tracking.start(contract, Layout(tmp_path), Command([sys.executable, "-c", "import time; time.sleep(60)"], {}))
    threading.Timer(0.2, setattr, (children, "stopping", True)).start()  # while it waits
    before = monotonic()
    tracking.finish(30)
    tracking.end(RunRecord(reason="Published", message="published x"), "published", 30)
    assert monotonic() - before < 10


def test_what_trackers_have_made_whole_in_time_is_published_and_nothing_that_comes_later(
    contract: RunContract, tmp_path: Path
) -> None:
    layout, tracking = Layout(tmp_path), Tracking(Children())
    followed = Subject(contract, subject(tmp_path).prepared, layout)

    def give(name: str) -> None:
        (layout.tracking / name).mkdir(parents=True)
        (layout.tracking / name / "file").write_text(name)
        followed.give(layout.tracking / name)

    give("of an attempt before")
    layout.output.mkdir()
    tracking.start(contract, layout, Command([sys.executable, "-c", ""], {}))
    give("tensorboard")
    tracking.finish(30)
    give("wandb")
    told = tracking.end(RunRecord(reason="Published", message="published x"), "published", 30)
    assert told.message.endswith("; wandb/ came too late to be published")
    assert "tensorboard/" not in told.message
    assert [path.relative_to(layout.output).as_posix() for path in sorted(layout.output.rglob("*"))] == [
        "tensorboard",
        "tensorboard/file",
    ]


def test_the_end_is_heard_while_a_tracker_is_still_waited_for(tmp_path: Path) -> None:
    never, layout, fake = threading.Event(), Layout(tmp_path), Fake()

    class Silent(Fake):
        def begin(self) -> str:
            never.wait()
            return ""

    layout.output.mkdir()
    MetricsFile(metrics=Metrics(steps=2), curve=CURVE, pace=PACE, seconds={}).write(layout.output / "metrics.json")
    before = monotonic()
    said = iter([["finish", "60"], None, ["end", "published", "0.5"], *[None] * 10])
    follow(layout, [Teller("mlflow", Silent), Teller("wandb", lambda: fake)], said)
    assert monotonic() - before < 20
    never.set()
    assert fake.said == ["begin", POINTS, Metrics(steps=2), "published"]
    warnings = [state.warning for state in Tracked.read(layout.tracked).trackers]
    assert warnings == [f"mlflow was not reached and has nothing of the run: it does not answer{FIX}", None]


def test_the_record_is_there_before_trackers_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(self: Tracking, record: RunRecord, ending: Ending, seconds: float) -> RunRecord:
        seen.append(termination.read_text())
        return record.model_copy(update={"message": f"{record.message}; mlflow lacks it"})

    seen: list[str] = []
    termination = tmp_path / "termination"
    monkeypatch.setattr(Tracking, "end", end)
    lifecycle.run(lifecycle.Options(tmp_path / "no contract", tmp_path / "work", termination), Children())
    assert "the contract cannot be read" in seen[0]
    assert "mlflow lacks it" in termination.read_text()


def test_a_run_without_trackers_starts_no_process(tmp_path: Path) -> None:
    tracking, record = Tracking(Children()), RunRecord(reason="Published", message="published x")
    tracking.start(runs.contract("s3://out/x", StorageAccess()), Layout(tmp_path), Command(["/no/such/program"], {}))
    tracking.finish(1)
    assert tracking.end(record, "published", 1) is record


def test_keys_of_trackers_are_kept_from_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*MLFLOW_KEYS, WANDB_KEY):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in environment("train", 0, 1, 0).values()
    assert list(environment("publish", 0, 1, 0).values()).count("secret") == 4


def subject(tmp_path: Path, content: str = "a", **changes: object) -> Subject:
    file = FileDigest(path="x", sha256=content * 64, size=1)
    prepared = Prepared(
        model=SourceDigest(uri="s3://models/tiny", files=[file, file]),
        data=[SourceDigest(uri="s3://d/x", files=[file])],
    )
    return Subject(runs.contract("s3://out/x", StorageAccess(), **changes), prepared, Layout(tmp_path))


def test_a_run_is_known_by_its_job_and_by_what_it_reads(tmp_path: Path) -> None:
    first = subject(tmp_path, job_uid="one")
    assert first.identity == subject(tmp_path, job_uid="one").identity
    others = [subject(tmp_path, job_uid="two"), subject(tmp_path, "b", job_uid="one"), subject(tmp_path)]
    assert len({one.identity for one in (first, *others)}) == 4


def test_a_run_outside_a_cluster_is_known_by_the_folder_of_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(folder: Path, machine: str = "one") -> str:
        monkeypatch.setattr("lorikeet_trainer.trackers.tracker.gethostname", lambda: machine)
        monkeypatch.setenv(FOLDERS_VARIABLE, "")
        use_folders({}, {"s3://out/x": folder})
        return subject(tmp_path).identity

    assert known(tmp_path / "a") == known(tmp_path / "b" / ".." / "a")
    assert len({known(tmp_path / "a"), known(tmp_path / "b"), known(tmp_path / "a", "two")}) == 3
    assert subject(tmp_path).facts["output"] == f"{tmp_path}/a/{subject(tmp_path).contract.run_id}"


def test_sources_are_told_by_the_sha256_of_their_file(tmp_path: Path) -> None:
    facts = subject(tmp_path, job_uid="one").facts
    assert facts["data.0.sha256"] == "a" * 64
    assert facts["model.sha256"] not in ("a" * 64, "")
    assert (facts["job"], facts["jobUid"]) == ("sql-v1", "one")


def test_a_configuration_is_told_leaf_by_leaf() -> None:
    nested = {"a": {"b": 2e-4, "c": {}}, "d": ["x", "y"], "e": [{"uri": "s3://x"}], "f": "text", "g": True}
    assert flat(nested) == {
        "a.b": "0.0002",
        "a.c": "{}",
        "d": '["x","y"]',
        "e.0.uri": "s3://x",
        "f": "text",
        "g": "true",
    }


def test_only_the_first_failure_of_many_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up()
    one = Teller("mlflow", lambda: Fake(failures=99))
    one.finish(Metrics(steps=2))
    settle(one)
    assert capsys.readouterr().out.count("event=tracking") == 1


@dataclass
class Board:
    """A run that TensorBoard follows, with a folder in the place of the bucket."""

    tracker: TensorBoardTracker
    left: Path
    """The event file in the run's folder."""
    clock: list[float]

    def tell(self, at: float, step: int) -> list[int]:
        """Tell the loss of a step so many seconds after the beginning; return the steps that the run's folder has."""
        self.clock[0] = at
        self.tracker.tell([Point(step=step, time=at, values={"loss": 1.0})])
        events = read_events(self.left.read_bytes()) if self.left.exists() else []
        return [event.step for event in events for value in event.summary.value if value.tag == "loss"]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    clock = [0.0]
    monkeypatch.setattr("lorikeet_trainer.trackers.tensorboard.monotonic", lambda: clock[0])
    monkeypatch.setenv(FOLDERS_VARIABLE, "")
    use_folders({}, {"s3://out/x": tmp_path / "bucket"})
    followed = subject(tmp_path)
    tracker = TensorBoardTracker(followed)
    tracker.begin()
    return Board(tracker, tmp_path / "bucket" / followed.contract.run_id / "live" / EVENTS, clock)


def test_what_tensorboard_reads_of_a_run_is_renewed_twice_a_minute(board: Board) -> None:
    assert board.tell(29, step=1) == []
    assert board.tell(30, step=2) == [1, 2]
    assert board.tell(59, step=3) == [1, 2]
    assert board.tell(60, step=4) == [1, 2, 3, 4]


def test_a_store_that_takes_no_events_now_costs_a_line_and_is_tried_again(
    board: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> None:
        raise Unreachable("StorageUnreachable", "the store does not answer", retryable=True)

    log.set_up()
    with monkeypatch.context() as patch:
        patch.setattr("lorikeet_trainer.trackers.tensorboard.leave_file", away)
        assert board.tell(30, step=1) == []
        assert board.tell(59, step=2) == []
    (line,) = capsys.readouterr().out.splitlines()
    assert "event=tracking" in line
    assert "tracker=tensorboard" in line
    assert "not uploaded now: the store does not answer" in line
    assert board.tell(60, step=3) == [1, 2, 3]
