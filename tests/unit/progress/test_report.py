"""What becomes of a post in the status."""

from typing import Any

import pytest

from lorikeet_api.progress import Progress, ProgressReport
from lorikeet_operator.progress.report import after, merged, progress_of

NOW = "2026-11-23T10:00:00Z"


def told(before: Progress | None = None, pod: str = "p0", **status: Any) -> Progress:
    metrics = [{"name": name, "value": value} for name, value in status.pop("metrics", {}).items()]
    report = ProgressReport.model_validate({"trainerStatus": {**status, **({"metrics": metrics} if metrics else {})}})
    return after(before, progress_of(report.trainer_status, pod, NOW))


def test_what_transformers_own_callback_posts_is_understood() -> None:
    metrics = {"loss": "1.2345678", "learning_rate": "2e-4", "current_step": "10", "total_steps": "40"}
    found = told(
        lastUpdatedTime="2026-11-23T09:59:59+00:00",
        progressPercentage=25,
        estimatedRemainingSeconds=30,
        metrics={**metrics, "current_epoch": "0.5", "num_tokens": "100.0"},
    )
    assert found.to_wire() == {
        "pod": "p0",
        "updatedTime": NOW,
        "percent": 25,
        "etaSeconds": 30,
        "step": 10,
        "totalSteps": 40,
        "epoch": 0.5,
        "loss": 1.23457,
        "learningRate": 0.0002,
    }


def test_what_is_not_told_again_stays() -> None:
    before = told(progressPercentage=25, metrics={"loss": "1.5", "current_step": "10"})
    after = told(before, progressPercentage=50)
    assert (after.percent, after.loss, after.step) == (50, 1.5, 10)


def test_signs_are_told_whole_and_stay() -> None:
    sign = {"name": "LossSpike", "step": 30, "message": "m"}
    before = told(signs=[sign])
    assert told(before, progressPercentage=50).to_wire()["signs"] == [sign]


def test_a_new_attempt_begins_anew() -> None:
    before = told(progressPercentage=25, record={"reason": "InternalError", "message": "x", "retryable": True})
    after = told(before, pod="p1", stage="prepare")
    assert after.to_wire() == {"pod": "p1", "updatedTime": NOW, "stage": "prepare"}


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "much", ""])
def test_what_is_no_number_has_nothing_to_tell(value: str) -> None:
    before = told(metrics={"loss": "1.5"})
    assert told(before, metrics={"loss": value}).loss == 1.5


def test_a_record_is_kept_whole_and_bounded() -> None:
    found = told(record={"reason": "OutOfMemory", "message": "x" * 9000, "metrics": {"trainLoss": 0.5}}).record
    assert found is not None
    assert (found.reason, len(found.message), found.metrics and found.metrics.train_loss) == ("OutOfMemory", 4000, 0.5)


def at(seconds: int, **fields: Any) -> Progress:
    return Progress.model_validate({"pod": "p0", **fields, "updated_time": f"2026-11-23T10:00:{seconds:02}Z"})


def test_another_replicas_older_news_fill_gaps_and_replace_nothing() -> None:
    found = merged(at(9, percent=50, loss=1.0), at(5, percent=40, eval_loss=2.0))
    assert found == at(9, percent=50, loss=1.0, eval_loss=2.0)


def test_after_the_end_of_a_pod_nothing_of_it_is_news() -> None:
    held = at(5, percent=100, record={"reason": "Published", "message": "m"})
    assert merged(held, at(9, percent=99, stage="publish")) is None
    assert merged(held, at(9, record={"reason": "InternalError", "message": "again"})) is None
    assert merged(held, at(9, pod="p1", percent=1)) == at(9, pod="p1", percent=1)


def test_the_end_counts_however_late_it_is_written() -> None:
    record = {"reason": "Published", "message": "m"}
    found = merged(at(9, percent=99), at(5, percent=100, record=record))
    assert found is not None
    assert (found.percent, found.record and found.record.reason) == (100, "Published")


def test_an_earlier_attempts_end_is_told_however_late_unless_a_later_one_has_ended() -> None:
    end = at(5, record={"reason": "OutOfMemory", "message": "m"})
    assert merged(at(9, pod="p1", percent=1), end) == end
    assert merged(at(9, pod="p1", record={"reason": "Published", "message": "m"}), end) is None


def test_an_earlier_attempts_news_do_not_come_back() -> None:
    assert merged(at(9, pod="p1", percent=1), at(5, percent=40)) is None
