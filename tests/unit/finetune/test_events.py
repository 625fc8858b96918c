"""What `kubectl describe` tells of a run that is steered or ended: each turn once, and what to do next."""

from tests.unit.finetune.test_reconcile import PREEMPTED, RUNNING, World, ended, holds, steer, steered


def said(world: World, reason: str) -> list[str]:
    """Return the messages of the Events of a reason, in the order in which they were written."""
    return [body["message"] for body in events(world) if body["reason"] == reason]


def events(world: World) -> list[dict[str, str]]:
    return [seen.body for seen in world.api.seen if seen.method == "POST" and "/events" in seen.path]


async def looked_at_again(world: World) -> None:
    for _ in range(3):
        await world.reconcile()


async def stops(world: World) -> None:
    """Let the trainer of a run that is suspended stop."""
    pod = max(path.rsplit("/", 1)[1] for path in world.api.objects if "/pods/" in path)
    world.pod("Failed", ended(75, PREEMPTED, 40), pod)
    world.batch_job_says(holds("Suspended"))
    await looked_at_again(world)


async def test_a_suspension_is_told_when_it_is_asked_for_and_when_it_holds(running: World) -> None:
    await steer(running, suspend=True)
    await looked_at_again(running)
    assert said(running, "SuspendedByUser") == ["the trainer is told to stop"]
    await stops(running)
    assert said(running, "SuspendedByUser")[1:] == ["suspended: set spec.suspend to false to go on"]


async def test_a_job_that_is_created_suspended_says_how_it_goes_on(world: World) -> None:
    steered(world, suspend=True)
    await looked_at_again(world)
    (event,) = events(world)
    assert (event["type"], event["reason"]) == ("Normal", "SuspendedByUser")
    assert event["message"] == "suspended: set spec.suspend to false to go on"


async def test_a_run_that_is_resumed_says_so_once(running: World) -> None:
    await steer(running, suspend=True)
    await stops(running)
    await steer(running, suspend=False)
    await looked_at_again(running)
    running.pod("Running", RUNNING, "p1")
    await looked_at_again(running)
    assert said(running, "Resumed") == ["goes on"]
    assert running.status["phase"] == "Running"


async def test_a_second_suspension_is_told_like_the_first_and_neither_is_a_warning(running: World) -> None:
    for number in (1, 2):
        await steer(running, suspend=True)
        before = said(running, "Preempted")
        await stops(running)
        assert said(running, "Preempted") == before, "we have stopped it ourselves"
        await steer(running, suspend=False)
        running.pod("Running", RUNNING, f"p{number}")
        await looked_at_again(running)
    reasons = ["SuspendedByUser", "SuspendedByUser", "Resumed"]
    story = [body for body in events(running) if body["reason"] in reasons]
    assert [body["reason"] for body in story] == reasons * 2
    assert {body["type"] for body in story} == {"Normal"}


async def test_one_interruption_too_many_is_told_with_what_makes_them_fewer(running: World) -> None:
    await steer(running, maxPreemptions=1)
    running.pod("Failed", ended(75, PREEMPTED))
    await looked_at_again(running)
    assert not said(running, "PreemptedTooOften")
    running.pod("Failed", ended(75, PREEMPTED), "p1")
    await looked_at_again(running)
    (message,) = said(running, "PreemptedTooOften")
    assert "interrupted 2 times, maxPreemptions is 1" in message
    assert "create a new job with more, which goes on from the newest checkpoint" in message
    assert "choose nodes that are not reclaimed so often, or a higher priorityClassName" in message
    assert (events(running)[-1]["type"], message) == ("Warning", running.status["message"])


async def test_a_deadline_that_has_passed_is_told_with_what_to_ask_for_next(running: World) -> None:
    await steer(running, activeDeadlineSeconds=100)
    await looked_at_again(running)
    assert not said(running, "DeadlineExceeded")
    await running.reconcile(100)
    await looked_at_again(running)
    (message,) = said(running, "DeadlineExceeded")
    assert "activeDeadlineSeconds is 100: create a new job with more, which" in message
    assert (events(running)[-1]["type"], message) == ("Warning", running.status["message"])
