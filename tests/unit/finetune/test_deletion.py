"""What the deletion of a FineTuneJob does to what it has written."""

from typing import Any

import pytest

from lorikeet_api.names import FINALIZER
from lorikeet_operator.finetune.agent import CLEANUP_SECONDS
from lorikeet_operator.finetune.deletion import FORBIDDEN_AGAIN, LOOK_AGAIN
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.kinds import JOB, Object
from lorikeet_operator.kube.queue import Requeue
from tests.unit.finetune.test_agent import SOUND, ends
from tests.unit.finetune.test_reconcile import (
    CLEANUP,
    NAME,
    PREFLIGHT,
    RECORD,
    RUNNING,
    TRAIN,
    World,
    ended,
    holds,
    steered,
)
from tests.unit.kube.api import _failure

DELETED: dict[str, Any] = {"reason": "Deleted", "message": "deleted s3://adapters/x (9 objects)"}


def finalizers(world: World) -> list[str]:
    return list(world.get(FINETUNEJOB, NAME)["metadata"].get("finalizers") or [])


def deleted(world: World) -> None:
    """Ask for the deletion, as kubectl does."""
    metadata = world.get(FINETUNEJOB, NAME)["metadata"]
    time = world.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    world.change(FINETUNEJOB, NAME, metadata={**metadata, "deletionTimestamp": time})


def is_gone(world: World) -> bool:
    return FINETUNEJOB.path(*NAME) not in world.api.objects


def said(world: World) -> Object:
    """Return the last Event."""
    body: Object = [seen for seen in world.api.seen if seen.method == "POST" and "/events" in seen.path][-1].body
    return body


@pytest.fixture
async def held(checked: World) -> World:
    """A run at work whose deletion is to delete what it has written."""
    steered(checked, deletionPolicy="Delete")
    await checked.reconcile()
    ends(checked, PREFLIGHT, 0, SOUND)
    await checked.reconcile()
    checked.pod("Running", RUNNING)
    await checked.reconcile()
    assert finalizers(checked) == [FINALIZER]
    return checked


async def test_the_finalizer_follows_the_policy(held: World) -> None:
    metadata = held.get(FINETUNEJOB, NAME)["metadata"]
    held.change(FINETUNEJOB, NAME, metadata={**metadata, "finalizers": ["example.com/theirs", FINALIZER]})
    steered(held, deletionPolicy="Retain")
    await held.reconcile()
    assert finalizers(held) == ["example.com/theirs"]


async def test_what_is_retained_is_never_held(checked: World) -> None:
    await checked.reconcile()
    assert finalizers(checked) == []


async def test_a_run_at_work_is_ended_before_its_files_are_deleted(held: World) -> None:
    deleted(held)
    assert await held.reconcile() == Requeue(LOOK_AGAIN)
    assert held.get(JOB, TRAIN)["spec"]["activeDeadlineSeconds"] == 1
    held.batch_job_says(holds("Failed", reason="DeadlineExceeded"))
    assert await held.reconcile() == Requeue(LOOK_AGAIN)
    assert held.made(JOB) == 2, "its pod still has its grace period to write in"
    held.pod("Failed", ended(75, {"reason": "Preempted", "message": "stopped", "retryable": True}))
    await held.reconcile()
    job = held.get(JOB, CLEANUP)
    assert "ownerReferences" not in job["metadata"], "it would go with a family that is deleted at once"
    ends(held, CLEANUP, 0, DELETED)
    await held.reconcile()
    assert is_gone(held)
    assert (said(held)["reason"], said(held)["message"]) == ("CleanedUp", DELETED["message"])


async def test_a_finished_run_is_cleaned_at_once(held: World) -> None:
    ends(held, TRAIN, 0, RECORD)
    await held.reconcile()
    deleted(held)
    await held.reconcile()
    assert held.made(JOB) == 3


async def test_a_cleaning_that_fails_lets_go_and_says_so(held: World) -> None:
    ends(held, TRAIN, 0, RECORD)
    deleted(held)
    await held.reconcile()
    ends(held, CLEANUP, 64, {"reason": "StorageRefused", "message": "no right to delete"})
    await held.reconcile()
    assert is_gone(held)
    assert (said(held)["reason"], said(held)["type"]) == ("CleanupFailed", "Warning")
    assert "no right to delete" in said(held)["message"]


async def test_a_cleaning_that_takes_too_long_lets_go_and_says_so(held: World) -> None:
    deleted(held)
    await held.reconcile()
    await held.reconcile(CLEANUP_SECONDS)
    assert is_gone(held)
    assert "longer than 600 s" in said(held)["message"]


async def test_a_namespace_that_goes_itself_is_not_held_up(held: World) -> None:
    ends(held, TRAIN, 0, RECORD)
    deleted(held)
    held.api.answers = [_failure(403, "Forbidden", message="namespace team-a is being terminated")]
    await held.reconcile()
    assert is_gone(held)
    # Events about it are refused there, too.
    about = said(held)["involvedObject"]
    assert (said(held)["metadata"]["namespace"], about["kind"], about["name"]) == ("default", "Namespace", "team-a")
    assert "FineTuneJob sql-v1: what the run has written stays below s3://" in said(held)["message"]


async def test_a_quota_that_is_used_up_is_waited_for(held: World) -> None:
    ends(held, TRAIN, 0, RECORD)
    deleted(held)
    held.api.answers = [_failure(403, "Forbidden", message="exceeded quota")]
    assert await held.reconcile() == Requeue(FORBIDDEN_AGAIN)
    assert not is_gone(held)
    await held.reconcile()
    assert held.get(JOB, CLEANUP)


async def test_a_cleaning_that_nobody_waits_for_is_ended(held: World) -> None:
    ends(held, TRAIN, 0, RECORD)
    deleted(held)
    await held.reconcile()
    assert held.get(JOB, CLEANUP)["spec"]["activeDeadlineSeconds"] == CLEANUP_SECONDS
    await held.reconcile(CLEANUP_SECONDS)
    assert is_gone(held)
    assert held.get(JOB, CLEANUP)["spec"]["activeDeadlineSeconds"] == 1


async def test_a_request_that_never_wrote_anything_goes_at_once(checked: World) -> None:
    steered(checked, deletionPolicy="Delete", suspend=True)
    await checked.reconcile()
    assert finalizers(checked) == [FINALIZER]
    deleted(checked)
    await checked.reconcile()
    assert is_gone(checked)
    assert checked.made(JOB) == 0


async def test_without_the_agent_the_policy_is_refused(world: World) -> None:
    steered(world, deletionPolicy="Delete")
    await world.reconcile()
    assert world.condition("Validated")["reason"] == "InvalidSpec"
    assert "agent.enabled" in world.status["message"]
