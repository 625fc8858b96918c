"""What the deletion of a FineTuneJob does to what it has written."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from lorikeet_api import names
from lorikeet_api.names import FINALIZER
from lorikeet_operator.finetune.agent import CLEANUP_SECONDS
from lorikeet_operator.finetune.deletion import FORBIDDEN_AGAIN, LOOK_AGAIN, SERVED_AGAIN
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT
from lorikeet_operator.kube.kinds import JOB, NAMESPACE, Key, Object
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.times import timestamp
from tests.resources import deployment_body
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
from tests.unit.kube import api
from tests.unit.kube.api import _failure

CLEANUP_JOB = JOB.path(*CLEANUP)
DAY = 86_400.0
SHA256 = RECORD["artifacts"]["sha256"]  # type: ignore[index]
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


def served(world: World, namespace: str = "team-a", **status: Any) -> Object:
    """Put a ModelDeployment with a status; without one it serves nothing of the run."""
    return world.put(MODELDEPLOYMENT, {**deployment_body(namespace=namespace), "status": status})


def its_adapter(world: World) -> dict[str, Any]:
    """Return what a ModelDeployment's status says of the run's adapter."""
    contract = world.status["resolved"]["contract"]
    uri = f"{contract['outputUri']}/{contract['runId']}"
    return {"name": "sql", "uri": uri, "sha256": SHA256, "servedName": names.served_adapter("sql", SHA256)}


def history(world: World) -> dict[str, Any]:
    """Return the same, as an entry of its history."""
    adapter = its_adapter(world)
    return {"adapter": adapter["name"], "uri": adapter["uri"], "sha256": adapter["sha256"]}


def leads_to(sha256: str, adapter: str = "sql") -> list[dict[str, Any]]:
    """Return routes that lead to the base model and to a revision of an adapter."""
    variant = {"name": "a", "adapter": adapter, "servedName": names.served_adapter(adapter, sha256)}
    return [{"model": "sql", "variants": [{"name": "base", "servedName": "base-0a1b2c3d"}, variant]}]


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


@pytest.fixture
async def published(held: World) -> World:
    """The same run, once it has published."""
    ends(held, TRAIN, 0, RECORD)
    await held.reconcile()
    return held


@pytest.mark.parametrize(
    "status",
    [
        lambda world: {"adapters": [its_adapter(world)]},
        lambda world: {"history": [history(world)], "routes": leads_to(SHA256)},
        lambda world: {"adapters": [], "routes": leads_to(SHA256)},
    ],
    ids=["an adapter of it", "the revision before it", "one that the spec no longer has"],
)
@pytest.mark.parametrize("namespace", ["team-a", "team-b"])
async def test_what_is_served_is_not_deleted(
    published: World, status: Callable[[World], dict[str, Any]], namespace: str
) -> None:
    served(published, namespace, **status(published))
    deleted(published)
    await published.reconcile()
    assert await published.reconcile(DAY) == Requeue(SERVED_AGAIN)
    assert finalizers(published) == [FINALIZER]
    assert CLEANUP_JOB not in published.api.objects


async def test_a_revision_that_is_led_to_is_found_by_its_folder_where_the_runs_record_is_lost(held: World) -> None:
    held.batch_job_says(holds("Failed", reason="DeadlineExceeded"))
    held.pod("Failed", ended(70, {}))
    served(held, history=[history(held)], routes=leads_to(SHA256))
    deleted(held)
    assert await held.reconcile() == Requeue(SERVED_AGAIN)


@pytest.mark.parametrize(
    "status",
    [
        lambda world: {"history": [history(world)], "routes": leads_to("cd" * 32)},
        lambda world: {"adapters": [{**its_adapter(world), "uri": "s3://adapters/another/run"}]},
        lambda world: {},
    ],
    ids=["a revision that was served once", "another run", "nothing yet"],
)
async def test_what_is_not_in_service_is_deleted(published: World, status: Callable[[World], dict[str, Any]]) -> None:
    served(published, **status(published))
    deleted(published)
    await published.reconcile()
    assert CLEANUP_JOB in published.api.objects


async def test_a_deployment_that_goes_holds_nothing(published: World) -> None:
    body = served(published, adapters=[its_adapter(published)])
    key = Key("team-a", body["metadata"]["name"])
    published.change(MODELDEPLOYMENT, key, metadata={**body["metadata"], "deletionTimestamp": "2026-11-23T10:00:00Z"})
    deleted(published)
    await published.reconcile()
    assert CLEANUP_JOB in published.api.objects


async def test_who_waits_is_told_for_whom_and_what_to_do_once_an_hour(published: World) -> None:
    served(published, adapters=[its_adapter(published)])
    deleted(published)
    for _ in range(3):
        await published.reconcile()
    assert published.told().count("StillServed") == 1
    assert (said(published)["reason"], said(published)["type"]) == ("StillServed", "Warning")
    assert "let ModelDeployment team-a/assistant name another adapter, or delete it" in said(published)["message"]
    await published.reconcile(3600)
    assert published.told().count("StillServed") == 2


async def test_a_run_whose_folder_is_served_is_ended_at_once_all_the_same(held: World) -> None:
    served(held, adapters=[its_adapter(held)])
    deleted(held)
    assert await held.reconcile() == Requeue(LOOK_AGAIN)
    assert held.get(JOB, TRAIN)["spec"]["activeDeadlineSeconds"] == 1


async def let_go_after_a_day(published: World) -> None:
    """Have nobody look for a day, as while the operator is away, and the adapter let go meanwhile."""
    served(published, adapters=[its_adapter(published)])
    deleted(published)
    await published.reconcile()
    published.now += timedelta(seconds=DAY)
    served(published)


async def test_the_cleaning_has_its_time_once_the_adapter_is_let_go(
    published: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await let_go_after_a_day(published)
    monkeypatch.setattr(api, "CREATED", timestamp(published.now))
    assert await published.reconcile(0) == Requeue(LOOK_AGAIN)
    assert CLEANUP_JOB in published.api.objects
    assert await published.reconcile(CLEANUP_SECONDS - 1) == Requeue(1)
    await published.reconcile()
    assert is_gone(published)
    assert "longer than 600 s" in said(published)["message"]


async def test_a_quota_has_its_time_then_to_become_free(published: World) -> None:
    await let_go_after_a_day(published)
    for seconds, again in ((1.0, FORBIDDEN_AGAIN), (CLEANUP_SECONDS - 1, 1.0)):
        published.api.answers = [_failure(403, "Forbidden", message="exceeded quota")]
        assert await published.reconcile(seconds) == Requeue(again)
    published.api.answers = [_failure(403, "Forbidden", message="exceeded quota")]
    await published.reconcile()
    assert is_gone(published)
    assert "exceeded quota" in said(published)["message"]


async def test_a_namespace_that_goes_is_not_held_up_by_a_deployment_of_another_one(published: World) -> None:
    served(published, "team-b", adapters=[its_adapter(published)])
    deleted(published)
    published.put(NAMESPACE, {"metadata": {"name": "team-a"}})
    assert await published.reconcile() == Requeue(SERVED_AGAIN)
    published.put(NAMESPACE, {"metadata": {"name": "team-a", "deletionTimestamp": "2026-11-23T10:00:00Z"}})
    answer = web.json_response(published.get(NAMESPACE, Key("", "team-a")))
    published.api.answers = [answer, _failure(403, "Forbidden", message="namespace team-a is being terminated")]
    await published.reconcile()
    assert is_gone(published)
    assert (said(published)["reason"], said(published)["metadata"]["namespace"]) == ("CleanupFailed", "default")


async def test_it_is_too_late_to_serve_what_is_being_deleted(published: World) -> None:
    deleted(published)
    await published.reconcile()
    assert CLEANUP_JOB in published.api.objects
    served(published, adapters=[its_adapter(published)])
    ends(published, CLEANUP, 0, DELETED)
    await published.reconcile()
    assert is_gone(published)
    assert "StillServed" not in published.told()


@pytest.mark.parametrize(
    "source",
    [
        lambda world: {"fineTuneJobRef": {"name": NAME.name}},
        lambda world: {"uri": its_adapter(world)["uri"]},
        lambda world: {"uri": world.status["resolved"]["contract"]["outputUri"] + "/"},
    ],
    ids=["its job", "its folder", "where its job writes"],
)
async def test_what_a_deployment_names_is_not_deleted_before_its_status_says_anything(
    published: World, source: Callable[[World], dict[str, Any]]
) -> None:
    body = deployment_body(adapters=[{"name": "sql", "from": source(published)}])
    published.put(MODELDEPLOYMENT, body)
    deleted(published)
    assert await published.reconcile() == Requeue(SERVED_AGAIN)
    assert CLEANUP_JOB not in published.api.objects


async def test_a_full_fine_tune_is_not_deleted_while_it_is_served_as_a_base_model(published: World) -> None:
    published.put(MODELDEPLOYMENT, deployment_body(model={"uri": its_adapter(published)["uri"] + "/model"}))
    deleted(published)
    assert await published.reconcile() == Requeue(SERVED_AGAIN)
    assert CLEANUP_JOB not in published.api.objects


async def test_a_served_copy_does_not_hold_the_original(published: World) -> None:
    copy = {**its_adapter(published), "uri": "s3://production/sql/run"}
    served(published, adapters=[copy], routes=leads_to(SHA256))
    deleted(published)
    await published.reconcile()
    assert CLEANUP_JOB in published.api.objects


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


def trains_further(world: World, phase: str, **begins: Any) -> None:
    """Put a FineTuneJob that begins with some of the run's files."""
    contract = {"model": {"uri": "s3://models/base"}, **begins}
    status = {"phase": phase, "resolved": {"contract": contract}}
    metadata = {"name": "dpo-v1", "namespace": "team-a", "uid": "the later one"}
    world.put(FINETUNEJOB, {"metadata": metadata, "spec": {}, "status": status})


@pytest.mark.parametrize("what", ["adapter", "model", "reward"])
async def test_what_a_job_trains_further_is_not_deleted_before_that_has_ended(held: World, what: str) -> None:
    ends(held, TRAIN, 0, RECORD)
    await held.reconcile()
    uri = its_adapter(held)["uri"]
    begins: dict[str, Any] = {
        "adapter": {"start": {"uri": uri}},
        "model": {"model": {"uri": f"{uri}/model"}},
        "reward": {"objective": {"rlhf": {"rewards": [{"regex": {"pattern": "x"}}, {"model": {"uri": uri}}]}}},
    }[what]
    trains_further(held, "Running", **begins)
    deleted(held)
    assert await held.reconcile() == Requeue(SERVED_AGAIN)
    assert (held.made(JOB), said(held)["reason"]) == (2, "StillTrained")
    assert "once FineTuneJob team-a/dpo-v1 has ended" in said(held)["message"]
    trains_further(held, "Succeeded", **begins)
    await held.reconcile()
    assert held.made(JOB) == 3


def judges(world: World, method: str, base: str) -> str:
    """Put a FineTuneJob that has published a reward model; return where it lies."""
    uri = "s3://adapters/judge/0a1b2c3d"
    contract = {"model": {"uri": base}, "objective": {"reward": {}}, "method": {method: {}}}
    status = {"phase": "Succeeded", "resolved": {"contract": contract}, "artifacts": {"uri": uri}}
    metadata = {"name": "judge", "namespace": "team-a", "uid": "the judge"}
    world.put(FINETUNEJOB, {"metadata": metadata, "spec": {}, "status": status})
    return uri


@pytest.mark.parametrize("method", ["qlora", "full"])
async def test_nor_is_the_base_of_a_reward_adapter_that_a_job_trains_by(published: World, method: str) -> None:
    judge = judges(published, method, its_adapter(published)["uri"] + "/model")
    trains_further(published, "Running", objective={"rlhf": {"rewards": [{"model": {"uri": f"{judge}/"}}]}})
    deleted(published)
    await published.reconcile()
    assert (CLEANUP_JOB in published.api.objects) == (method == "full"), "a whole one has no base"
    trains_further(published, "Failed")
    await published.reconcile()
    assert CLEANUP_JOB in published.api.objects


async def test_a_job_that_begins_with_something_else_holds_nothing_up(held: World) -> None:
    ends(held, TRAIN, 0, RECORD)
    await held.reconcile()
    trains_further(held, "Running", start={"uri": its_adapter(held)["uri"] + "0"})
    deleted(held)
    await held.reconcile()
    assert held.made(JOB) == 3
