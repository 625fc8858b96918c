"""Two FineTuneJobs that ask for the very same run: one makes it, the other one waits and adopts the result."""

from typing import Any

import pytest

from lorikeet_operator.finetune.patience import NOT_STARTED, REFUSED_AGAIN
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.kinds import JOB, Key, Object
from lorikeet_operator.kube.queue import Requeue
from tests.unit.finetune.test_agent import SOUND, ends
from tests.unit.finetune.test_reconcile import NAME, PREFLIGHT, RECORD, RUNNING, TRAIN, World, ended, holds, request

OUTPUT = {"uri": "s3://adapters/shared"}
TWIN = Key("team-b", "twin")
TWINS_CHECK = Key("team-b", "twin-preflight")
TWINS_RUN = Key("team-b", "twin-train")


def twin(**spec: Any) -> Object:
    """Return the same request by somebody else."""
    body = request(**{"output": OUTPUT, **spec})
    names = {"name": TWIN.name, "namespace": TWIN.namespace, "uid": "twins-uid"}
    return {**body, "metadata": {**body["metadata"], **names}}


def reason(world: World, key: Key = TWIN) -> str:
    conditions = world.get(FINETUNEJOB, key)["status"]["conditions"]
    return str(next(each["reason"] for each in conditions if each["type"] == "Validated"))


@pytest.fixture
async def both(checked: World) -> World:
    """A run that is being checked, and a twin that has come second."""
    checked.change(FINETUNEJOB, NAME, spec=request(output=OUTPUT)["spec"])
    await checked.reconcile()
    checked.put(FINETUNEJOB, twin())
    await checked.controller.reconcile(TWIN)
    return checked


async def test_the_second_one_waits_and_says_for_whom(both: World) -> None:
    assert reason(both) == "SameRunUnderway"
    status = both.get(FINETUNEJOB, TWIN)["status"]
    assert status["phase"] == "Pending"
    assert "team-a/sql-v1 makes this very run" in status["message"]
    assert both.made(JOB) == 1
    writes = len(both.api.writes)
    await both.controller.reconcile(TWIN)
    assert len(both.api.writes) == writes


async def test_it_is_woken_by_the_end_of_the_first_and_adopts(both: World) -> None:
    ends(both, PREFLIGHT, 0, SOUND)
    await both.reconcile()
    ends(both, TRAIN, 0, RECORD)
    await both.reconcile()
    assert both.status["phase"] == "Succeeded"
    assert TWIN in both.controller.keys_for(FINETUNEJOB, both.get(FINETUNEJOB, NAME))
    await both.controller.reconcile(TWIN)
    assert both.get(JOB, TWINS_CHECK)
    assert reason(both) == "Checking"


async def test_it_takes_over_where_the_first_is_deleted(both: World) -> None:
    ends(both, PREFLIGHT, 0, SOUND)
    await both.reconcile()
    gone = both.get(FINETUNEJOB, NAME)
    both.delete(FINETUNEJOB, NAME)
    assert TWIN in both.controller.keys_for(FINETUNEJOB, gone)
    await both.controller.reconcile(TWIN)
    assert both.get(JOB, TWINS_CHECK)


async def test_it_takes_over_where_the_first_has_failed(both: World) -> None:
    ends(both, PREFLIGHT, 65, {"reason": "DataInvalid", "message": "line 37"})
    await both.reconcile()
    await both.controller.reconcile(TWIN)
    assert both.get(JOB, TWINS_CHECK)


async def test_an_operator_that_begins_anew_knows_whose_turn_it_is(both: World) -> None:
    """It was killed after it had made the batch Job, and before it could write that down."""
    ends(both, PREFLIGHT, 0, SOUND)
    await both.reconcile()
    status = {name: value for name, value in both.status.items() if name not in ("jobUid", "startTime")}
    both.change(FINETUNEJOB, NAME, status=status)
    both.controller = type(both.controller)(
        both.controller._kube, "trainer:test", lambda: both.now, agent_image="agent:test"
    )
    await both.controller.reconcile(TWIN)
    assert reason(both) == "SameRunUnderway"
    await both.reconcile()
    assert both.status["jobUid"] == both.get(JOB, TRAIN)["metadata"]["uid"]


@pytest.mark.parametrize(
    "spec", [{"output": {"uri": "s3://adapters/another"}}, {"training": {"seed": 7}}], ids=["output", "seed"]
)
async def test_another_output_or_another_run_does_not_wait(checked: World, spec: dict[str, Any]) -> None:
    checked.change(FINETUNEJOB, NAME, spec=request(output=OUTPUT)["spec"])
    await checked.reconcile()
    checked.put(FINETUNEJOB, twin(**spec))
    await checked.controller.reconcile(TWIN)
    assert checked.get(JOB, TWINS_CHECK)


async def test_who_makes_a_run_forgets_it_with_the_run(both: World) -> None:
    ends(both, PREFLIGHT, 0, SOUND)
    await both.reconcile()
    both.pod("Succeeded", ended(0, RECORD))
    both.batch_job_says(holds("Complete"), succeeded=1)
    await both.reconcile()
    list(both.controller.keys_for(FINETUNEJOB, both.get(FINETUNEJOB, NAME)))
    assert not both.controller._turns._let_in


@pytest.fixture
async def apart(checked: World) -> World:
    """A run that is being checked, and the same request by somebody else, which nobody has looked at yet."""
    checked.change(FINETUNEJOB, NAME, spec=request(output=OUTPUT)["spec"])
    await checked.reconcile()
    checked.put(FINETUNEJOB, twin())
    return checked


async def test_one_whose_check_cannot_begin_lets_the_other_go_first(apart: World) -> None:
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}
    apart.pod("Pending", waiting, of=PREFLIGHT)
    await apart.reconcile()
    await apart.controller.reconcile(TWIN)
    assert apart.get(JOB, TWINS_CHECK)
    await apart.reconcile()
    assert reason(apart, NAME) == "SameRunUnderway"


async def test_so_does_one_whose_batch_job_cannot_be_made(apart: World) -> None:
    apart.put(JOB, {"metadata": {"name": TRAIN.name, "namespace": "team-a", "uid": "theirs"}})
    ends(apart, PREFLIGHT, 0, SOUND)
    await apart.reconcile()
    assert reason(apart, NAME) == "NameTaken"
    await apart.controller.reconcile(TWIN)
    assert apart.get(JOB, TWINS_CHECK)


async def test_and_one_that_is_suspended_before_it_trains(apart: World) -> None:
    apart.change(FINETUNEJOB, NAME, spec=request(output=OUTPUT, suspend=True)["spec"])
    await apart.reconcile()
    await apart.controller.reconcile(TWIN)
    assert apart.get(JOB, TWINS_CHECK)


async def test_who_has_waited_is_checked_anew(apart: World) -> None:
    """What it was told before its turn is over: there is a result by now, and no GPU is needed."""
    apart.put(JOB, {"metadata": {"name": TRAIN.name, "namespace": "team-a", "uid": "theirs"}})
    ends(apart, PREFLIGHT, 0, SOUND)
    await apart.reconcile()
    apart.delete(JOB, TRAIN)
    await apart.controller.reconcile(TWIN)
    await apart.reconcile()
    assert reason(apart, NAME) == "SameRunUnderway"
    assert "checked" not in apart.status["resolved"]
    assert apart.get(JOB, PREFLIGHT)["spec"]["ttlSecondsAfterFinished"] == 0
    apart.change(FINETUNEJOB, TWIN, status={**apart.get(FINETUNEJOB, TWIN)["status"], "phase": "Succeeded"})
    assert await apart.reconcile() == Requeue(NOT_STARTED)
    assert TRAIN.name not in str(apart.api.objects.keys())
    apart.delete(JOB, PREFLIGHT)
    await apart.reconcile()
    ends(apart, PREFLIGHT, 0, {**RECORD, "reason": "Adopted"})
    await apart.reconcile()
    assert (apart.status["phase"], apart.condition("Complete")["reason"]) == ("Succeeded", "Adopted")


async def test_a_run_that_was_ended_still_saves_its_last_checkpoint(both: World) -> None:
    ends(both, PREFLIGHT, 0, SOUND)
    await both.reconcile()
    both.pod("Running", RUNNING)
    both.change(FINETUNEJOB, NAME, spec=request(output=OUTPUT, activeDeadlineSeconds=10)["spec"])
    await both.reconcile(100)
    assert both.status["phase"] == "Failed"
    assert await both.controller.reconcile(TWIN) == Requeue(REFUSED_AGAIN)
    assert reason(both) == "SameRunUnderway"
    both.pod("Failed", ended(75, {"reason": "Preempted", "message": "stopped", "retryable": True}))
    await both.controller.reconcile(TWIN)
    assert both.get(JOB, TWINS_CHECK)


async def test_a_waiting_job_that_is_resumed_does_not_say_that_it_is_suspended(both: World) -> None:
    for suspend in (True, False):
        both.change(FINETUNEJOB, TWIN, spec=twin(suspend=suspend)["spec"])
        await both.controller.reconcile(TWIN)
    status = both.get(FINETUNEJOB, TWIN)["status"]
    assert (status["phase"], "makes this very run" in status["message"]) == ("Pending", True)
