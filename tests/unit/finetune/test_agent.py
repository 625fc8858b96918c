"""What is found out before a GPU is asked for, and after a record is lost: the operator's side of it."""

from typing import Any

import pytest

from lorikeet_operator.finetune.reconcile import NOT_STARTED, REFUSED_AGAIN
from lorikeet_operator.kube.kinds import JOB, Key
from lorikeet_operator.kube.queue import Requeue
from tests.unit.finetune.test_reconcile import (
    PREFLIGHT,
    RECORD,
    RECOVER,
    RUNNING,
    TRAIN,
    World,
    ended,
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
