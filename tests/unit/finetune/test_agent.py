"""What is found out before a GPU is asked for, and after a record is lost: the operator's side of it."""

from typing import Any

import pytest

from lorikeet_operator.finetune.patience import NOT_STARTED, REFUSED_AGAIN
from lorikeet_operator.kube.kinds import JOB, POD, Key
from lorikeet_operator.kube.queue import Requeue
from tests.unit.finetune.test_reconcile import (
    PREFLIGHT,
    RECORD,
    RECOVER,
    RUNNING,
    TRAIN,
    World,
    ended,
    has_told,
    holds,
    steered,
)

PINS = ["a" * 64, "b" * 64]
SOUND: dict[str, Any] = {"reason": "Checked", "message": "checked: 60 rows", "pins": PINS}


def ends(world: World, of: Key, code: int, record: dict[str, Any]) -> None:
    """Let a pod of a task's Job end, and the Job with it."""
    world.pod("Failed" if code else "Succeeded", ended(code, record), of=of)
    kind = holds("Failed", reason="PodFailurePolicy") if code else holds("Complete")
    world.batch_job_says(kind, of=of)


async def test_nothing_is_trained_before_the_run_is_checked(checked: World) -> None:
    assert await checked.reconcile() is None
    assert (checked.status["phase"], checked.condition("Validated")["reason"]) == ("Validating", "Checking")
    checked.batch_job_says(active=1, of=PREFLIGHT)
    assert await checked.reconcile() == Requeue(NOT_STARTED)
    checked.pod("Running", RUNNING, of=PREFLIGHT)
    assert await checked.reconcile() is None
    assert checked.made(JOB) == 1
    before = len(checked.api.writes)
    await checked.reconcile()
    assert len(checked.api.writes) == before


async def test_what_the_check_pinned_is_what_the_trainer_gets(checked: World) -> None:
    await checked.reconcile()
    ends(checked, PREFLIGHT, 0, SOUND)
    await checked.reconcile()
    assert (checked.condition("Validated")["status"], checked.condition("Validated")["reason"]) == ("True", "Checked")
    assert "checked: 60 rows; resolved with" in checked.condition("Validated")["message"]
    assert checked.status["resolved"]["contract"]["pins"] == PINS
    assert PINS[1] in checked.get(JOB, TRAIN)["spec"]["template"]["metadata"]["annotations"]["lorikeet.dev/contract"]
    assert checked.status["jobUid"] == checked.get(JOB, TRAIN)["metadata"]["uid"]
    assert checked.told() == ["Checked"]
    checked.delete(JOB, PREFLIGHT)
    await checked.reconcile()
    assert checked.made(JOB) == 2, "the check is over, whatever becomes of its Job"


async def test_a_finished_result_is_adopted_without_training(checked: World) -> None:
    await checked.reconcile()
    ends(checked, PREFLIGHT, 0, {**RECORD, "reason": "Adopted"})
    for _ in range(3):
        await checked.reconcile()
    assert checked.status["phase"] == "Succeeded"
    assert checked.condition("Complete")["reason"] == "Adopted"
    assert checked.status["artifacts"]["revision"] == "abcdef01"
    assert checked.made(JOB) == 1


async def test_what_is_wrong_ends_the_job_and_nothing_trains(checked: World) -> None:
    await checked.reconcile()
    ends(checked, PREFLIGHT, 65, {"reason": "DataInvalid", "message": "train.jsonl, line 37: not JSON"})
    for _ in range(3):
        await checked.reconcile()
    assert (checked.status["phase"], checked.status["message"]) == ("Failed", "train.jsonl, line 37: not JSON")
    assert checked.condition("Failed")["reason"] == checked.condition("Validated")["reason"] == "DataInvalid"
    assert checked.made(JOB) == 1


async def test_what_keeps_the_check_waiting_is_told(checked: World) -> None:
    await checked.reconcile()
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}
    checked.pod("Pending", waiting, of=PREFLIGHT)
    await checked.reconcile()
    assert (checked.status["phase"], checked.condition("Validated")["reason"]) == (
        "Validating",
        "ContainerConfigInvalid",
    )
    assert 'secret "s3" not found' in checked.status["message"]


async def test_a_check_whose_store_is_away_is_made_again(checked: World) -> None:
    await checked.reconcile()
    away = {"reason": "StorageUnreachable", "message": "nobody answers", "retryable": True}
    checked.pod("Failed", ended(70, away), of=PREFLIGHT)
    checked.batch_job_says(failed=1, of=PREFLIGHT)
    await checked.reconcile()
    assert checked.status["phase"] == "Validating"
    assert "made again shortly: nobody answers" in checked.condition("Validated")["message"]


async def test_a_check_whose_record_is_lost_is_made_anew(checked: World) -> None:
    await checked.reconcile()
    checked.batch_job_says(holds("Complete"), of=PREFLIGHT)
    assert await checked.reconcile() == Requeue(NOT_STARTED)
    assert checked.get(JOB, PREFLIGHT)["spec"]["ttlSecondsAfterFinished"] == 0
    checked.delete(JOB, PREFLIGHT)
    await checked.reconcile()
    assert checked.made(JOB) == 2


async def test_a_name_that_is_taken_is_told(checked: World) -> None:
    theirs = {"metadata": {"name": PREFLIGHT.name, "namespace": "team-a", "uid": "theirs"}}
    checked.put(JOB, theirs)
    assert await checked.reconcile() == Requeue(REFUSED_AGAIN)
    assert checked.condition("Validated")["reason"] == "NameTaken"


async def test_a_suspended_job_is_checked_when_it_goes_on(checked: World) -> None:
    steered(checked, suspend=True)
    await checked.reconcile()
    assert (checked.status["phase"], checked.made(JOB)) == ("Suspended", 0)
    steered(checked, suspend=False)
    await checked.reconcile()
    assert (checked.status["phase"], checked.condition("Suspended")["reason"]) == ("Validating", "Resumed")


@pytest.fixture
async def lost(checked: World) -> World:
    """A run that is done, and whose pod is gone with its record."""
    await checked.reconcile()
    ends(checked, PREFLIGHT, 0, SOUND)
    await checked.reconcile()
    checked.batch_job_says(holds("Complete"), succeeded=1)
    await checked.reconcile()
    assert checked.condition("Complete")["reason"] == "RecordLost"
    assert checked.status["phase"] not in ("Succeeded", "Failed")
    return checked


async def test_a_lost_record_is_read_from_what_was_published(lost: World) -> None:
    ends(lost, RECOVER, 0, RECORD)
    for _ in range(2):
        await lost.reconcile()
    assert lost.status["phase"] == "Succeeded"
    assert (lost.status["metrics"], lost.status["artifacts"]["revision"]) == ({"trainLoss": 0.5}, "abcdef01")
    assert lost.made(JOB) == 3


async def test_a_lost_record_without_a_manifest_is_a_failure(lost: World) -> None:
    ends(lost, RECOVER, 64, {"reason": "OutputConflict", "message": "holds no manifest"})
    await lost.reconcile()
    assert (lost.status["phase"], lost.status["message"]) == ("Failed", "holds no manifest")
    assert lost.condition("Validated")["status"] == "True"


async def test_a_store_that_cannot_be_asked_makes_no_failure_of_a_finished_run(lost: World) -> None:
    ends(lost, RECOVER, 64, {"reason": "StorageRefused", "message": "the key was rotated"})
    await lost.reconcile()
    assert (lost.status["phase"], lost.condition("Complete")["reason"]) == ("Succeeded", "RecordLost")


@pytest.fixture
async def deleted(checked: World) -> World:
    """A run whose batch Job was deleted, and whose pod is gone with it."""
    await checked.reconcile()
    ends(checked, PREFLIGHT, 0, SOUND)
    await checked.reconcile()
    checked.pod("Running", RUNNING)
    await checked.reconcile()
    checked.delete(POD, Key("team-a", "p0"))
    checked.delete(JOB, TRAIN)
    await checked.reconcile()
    assert (checked.status["phase"], checked.condition("Complete")["reason"]) == ("Running", "JobDeleted")
    return checked


async def test_a_run_whose_job_was_deleted_may_have_published_before(deleted: World) -> None:
    """It was done while no operator was there to see it, and its Job was deleted before one was."""
    ends(deleted, RECOVER, 0, RECORD)
    for _ in range(2):
        await deleted.reconcile()
    assert (deleted.status["phase"], deleted.status["artifacts"]["revision"]) == ("Succeeded", "abcdef01")
    assert deleted.condition("Validated")["reason"] == "Checked"
    assert deleted.made(JOB) == 3


async def test_a_run_whose_job_was_deleted_and_that_has_published_nothing_is_not_trained_again(deleted: World) -> None:
    ends(deleted, RECOVER, 64, {"reason": "OutputConflict", "message": "holds no manifest"})
    for _ in range(2):
        await deleted.reconcile()
    assert (deleted.status["phase"], deleted.condition("Failed")["reason"]) == ("Failed", "JobDeleted")
    assert "manifest" not in deleted.status["message"]
    assert deleted.made(JOB) == 3


async def test_a_store_that_cannot_be_asked_about_a_deleted_job_is_named(deleted: World) -> None:
    ends(deleted, RECOVER, 64, {"reason": "StorageRefused", "message": "the key was rotated"})
    await deleted.reconcile()
    assert deleted.condition("Failed")["reason"] == "JobDeleted"
    assert "the key was rotated" in deleted.status["message"]


@pytest.mark.parametrize("orphan", [False, True], ids=["goes after its job", "was left as an orphan"])
async def test_the_pod_of_a_deleted_job_may_still_publish(checked: World, *, orphan: bool) -> None:
    await checked.reconcile()
    ends(checked, PREFLIGHT, 0, SOUND)
    await checked.reconcile()
    pod = checked.pod("Running", RUNNING)
    if orphan:
        pod = checked.change(POD, Key("team-a", "p0"), metadata={**pod["metadata"], "ownerReferences": []})
    checked.delete(JOB, TRAIN)
    assert await checked.reconcile() == Requeue(NOT_STARTED)
    assert "once its pod has ended" in checked.condition("Complete")["message"]
    assert checked.made(JOB) == 2, "nothing is read before"
    # Its node is lost: nobody will say that it has ended.
    gone_by = checked.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    checked.change(POD, Key("team-a", "p0"), metadata={**pod["metadata"], "deletionTimestamp": gone_by})
    await checked.reconcile(2)
    assert checked.get(JOB, RECOVER)


@pytest.mark.parametrize(
    ("told", "phase", "reason"),
    [
        (RECORD, "Succeeded", "Published"),
        ({"reason": "OutOfMemory", "message": "lower it", "retryable": False}, "Failed", "OutOfMemory"),
    ],
)
async def test_what_a_run_has_told_before_its_job_was_deleted_is_its_end(
    checked: World, told: dict[str, Any], phase: str, reason: str
) -> None:
    await checked.reconcile()
    ends(checked, PREFLIGHT, 0, SOUND)
    await checked.reconcile()
    has_told(checked, told)
    checked.delete(JOB, TRAIN)
    for _ in range(2):
        await checked.reconcile()
    kind = "Complete" if phase == "Succeeded" else "Failed"
    assert (checked.status["phase"], checked.condition(kind)["reason"]) == (phase, reason)
    assert checked.made(JOB) == 2
