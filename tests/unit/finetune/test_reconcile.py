"""What the operator makes of a FineTuneJob, step by step, against an API server that keeps every write."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lorikeet_operator import watched
from lorikeet_operator.finetune.job import ProgressEndpoint
from lorikeet_operator.finetune.patience import NOT_STARTED, PATIENCE, REFUSED_AGAIN
from lorikeet_operator.finetune.reconcile import FineTuneController as Controller
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT, TUNINGPROFILE
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.controller import Kube
from lorikeet_operator.kube.errors import Conflict
from lorikeet_operator.kube.events import Recorder
from lorikeet_operator.kube.kinds import EVENT, JOB, NAMESPACE, POD, Key, Kind, Object
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.writer import Writer
from tests.resources import UID, job_body, profile_body
from tests.unit.kube.api import Api, client_for, serve

KINDS = (EVENT, POD, JOB, FINETUNEJOB, TUNINGPROFILE, MODELDEPLOYMENT, NAMESPACE)
NAME = Key("team-a", "sql-v1")
TRAIN = Key("team-a", "sql-v1-train")
PREFLIGHT = Key("team-a", "sql-v1-preflight")
CLEANUP = Key("team-a", f"sql-v1-clean-{UID[:6]}")
RECOVER = Key("team-a", "sql-v1-recover")
RECORD = {
    "reason": "Published",
    "message": "published s3://adapters/x",
    "metrics": {"trainLoss": 0.5},
    "artifacts": {"uri": "s3://a/b", "runId": "r", "revision": "abcdef01", "sha256": "ab" * 32, "sizeBytes": 3},
}

RUNNING = {"running": {"startedAt": "2026-11-23T10:00:02Z"}}


@dataclass
class World:
    """A cluster with one namespace, what the operator has in its cache of it, and a clock."""

    api: Api
    cache: Cache
    controller: Controller
    now: datetime = field(default_factory=lambda: datetime(2026, 11, 23, 10, tzinfo=UTC))
    restart: Callable[[], tuple[Cache, Controller]] = field(default=lambda: pytest.fail("there is nobody to start one"))

    def put(self, kind: Kind, obj: Object, *, seen: bool = True) -> Object:
        """Change an object in the cluster; `seen`: the operator's watch has told it."""
        made = self.api.add(kind, obj)
        if seen:
            self.cache.put(kind, made)
        return made

    def change(self, kind: Kind, key: Key, *, seen: bool = True, **fields: Any) -> Object:
        """Replace top-level fields of an object."""
        return self.put(kind, {**self.get(kind, key), **fields}, seen=seen)

    def get(self, kind: Kind, key: Key) -> Object:
        return self.api.objects[kind.path(key.namespace, key.name)]

    def delete(self, kind: Kind, key: Key) -> None:
        gone = self.get(kind, key)
        self.api.remove(kind, gone, silently=True)
        self.cache.delete(kind, {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.api.version)}})

    async def reconcile(self, seconds: float = 1) -> Requeue | None:
        """Let time pass, then reconcile."""
        self.now += timedelta(seconds=seconds)
        return await self.controller.reconcile(NAME)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get(FINETUNEJOB, NAME)["status"]
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        return next(each for each in self.status["conditions"] if each["type"] == kind)

    def made(self, kind: Kind) -> int:
        """Return how many objects of a kind the operator has created."""
        return sum(seen.method == "POST" and f"/{kind.plural}" in seen.path for seen in self.api.seen)

    def told(self) -> list[str]:
        """Return the reasons of the Events so far."""
        return [seen.body["reason"] for seen in self.api.seen if seen.method == "POST" and "/events" in seen.path]

    def pod(
        self,
        phase: str,
        state: dict[str, Any],
        name: str = "p0",
        *,
        of: Key = TRAIN,
        seen: bool = True,
        **status: Any,
    ) -> Object:
        """Put the pod of an attempt."""
        container = "trainer" if of == TRAIN else "agent"
        metadata = {
            "name": name,
            "namespace": "team-a",
            "creationTimestamp": f"2026-11-23T10:{name[1:]:0>2}:00Z",
            "labels": self.get(JOB, of)["metadata"]["labels"],
            "ownerReferences": [{"controller": True, "uid": self.get(JOB, of)["metadata"]["uid"]}],
        }
        spec = {"nodeName": "n1", "containers": [{"name": container, "image": "image:1"}]}
        statuses = [{"name": container, "state": state}]
        body = {"metadata": metadata, "spec": spec, "status": {"phase": phase, "containerStatuses": statuses, **status}}
        return self.put(POD, body, seen=seen)

    def batch_job_says(self, *conditions: dict[str, Any], of: Key = TRAIN, **counters: int) -> None:
        began = {"startTime": "2026-11-23T10:00:00Z"}
        self.change(JOB, of, status={"conditions": list(conditions), **began, **counters})

    def event(self, about: Object, reason: str, message: str, time: str = "2026-11-23T10:00:05Z") -> None:
        """Say something about an object, as Kubernetes does."""
        uid = about["metadata"]["uid"]
        metadata = {"name": f"e{self.api.version}", "namespace": "team-a"}
        body = {"metadata": metadata, "involvedObject": {"uid": uid}, "reason": reason, "message": message}
        self.api.add(EVENT, {**body, "lastTimestamp": time})


def ended(code: int, record: dict[str, Any], seconds: int = 0, reason: str = "Error") -> dict[str, Any]:
    times = {
        "startedAt": "2026-11-23T10:00:02Z",
        "finishedAt": f"2026-11-23T10:{seconds // 60:02}:{seconds % 60 + 2:02}Z",
    }
    return {"terminated": {"exitCode": code, "message": json.dumps(record), "reason": reason, **times}}


PREEMPTED = {"reason": "Preempted", "message": "stopped", "retryable": True}


def holds(kind: str, **more: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "lastTransitionTime": "2026-11-23T10:05:00Z", **more}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A profile, a request, and nothing done yet."""
    api = Api(kinds=KINDS)
    server = await serve(api)
    async with client_for(server) as client:
        cache = Cache()
        for watch in Controller.watches:
            cache.register(watch.kind, watch.index, watch.slim)
        kube = Kube(cache, Writer(client, cache), Recorder(client, "tester"), client)
        made = World(api, cache, Controller(kube, "trainer:test", lambda: made.now))
        made.put(TUNINGPROFILE, profile_with_generation())
        made.put(FINETUNEJOB, request())
        yield made
    await server.close()


@pytest.fixture
async def checked(world: World) -> World:
    """The same, with an operator that knows an image to check runs with."""
    kube = world.controller._kube
    world.controller = Controller(kube, "trainer:test", lambda: world.now, agent_image="agent:test")
    world.cache.register(MODELDEPLOYMENT, watched.MODELDEPLOYMENTS.index)
    return world


def request(**spec: Any) -> Object:
    body = job_body(**spec)
    body["metadata"] |= {"uid": UID, "generation": 1, "creationTimestamp": "2026-11-23T10:00:00Z"}
    return body


def profile_with_generation(**spec: Any) -> Object:
    body = profile_body(**spec)
    body["metadata"] |= {"generation": 1}
    return body


@pytest.fixture
async def running(world: World) -> World:
    """The same, with the trainer at work."""
    await world.reconcile()
    world.batch_job_says(active=1)
    world.pod("Running", RUNNING)
    await world.reconcile()
    assert world.status["phase"] == "Running"
    return world


async def test_a_request_becomes_a_contract_and_one_batch_job(world: World) -> None:
    assert await world.reconcile() == Requeue(NOT_STARTED)
    assert world.status["jobUid"] == world.get(JOB, TRAIN)["metadata"]["uid"]
    assert (world.condition("Validated")["status"], world.condition("Validated")["reason"]) == ("True", "Resolved")


async def test_nothing_is_written_when_nothing_has_changed(running: World) -> None:
    before = len(running.api.writes)
    for _ in range(3):
        assert await running.reconcile(60) is None
    assert len(running.api.writes) == before


async def test_what_was_resolved_outlives_a_change_of_the_profile(world: World) -> None:
    await world.reconcile()
    world.put(TUNINGPROFILE, profile_with_generation(storage={"uri": "s3://elsewhere", "secretName": "x"}))
    await world.reconcile()
    assert world.status["resolved"]["contract"]["outputUri"].startswith("s3://adapters/")


async def test_an_operator_that_died_between_job_and_status_finds_its_job_again(world: World) -> None:
    await world.reconcile()
    status = {name: value for name, value in world.status.items() if name not in ("jobUid", "startTime")}
    world.change(FINETUNEJOB, NAME, status=status)
    await world.reconcile()
    assert world.status["jobUid"] == world.get(JOB, TRAIN)["metadata"]["uid"]
    assert world.made(JOB) == 1


async def test_a_batch_job_that_somebody_deleted_is_not_made_again(running: World) -> None:
    running.delete(JOB, TRAIN)
    for _ in range(3):
        await running.reconcile()
    assert running.status["phase"] == "Failed"
    assert running.condition("Failed")["reason"] == "JobDeleted"
    assert running.made(JOB) == 1


async def test_a_cache_that_does_not_know_the_job_yet_is_not_believed(world: World) -> None:
    await world.reconcile()
    gone = world.get(JOB, TRAIN)
    world.cache.delete(JOB, gone)
    await world.reconcile()
    assert world.status["phase"] == "Pending"


async def test_the_record_comes_from_the_api_server_where_the_watch_lags(running: World) -> None:
    running.pod("Succeeded", ended(0, RECORD), seen=False)
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile()
    assert running.status["phase"] == "Succeeded"
    assert running.status["metrics"] == {"trainLoss": 0.5}
    assert running.status["artifacts"]["revision"] == "abcdef01"
    assert running.status["message"] == RECORD["message"]


async def test_a_record_that_is_nowhere_is_told(running: World) -> None:
    running.delete(POD, Key("team-a", "p0"))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile()
    assert (running.status["phase"], running.condition("Complete")["reason"]) == ("Succeeded", "RecordLost")


def has_told(world: World, record: dict[str, Any]) -> None:
    """Let a pod tell its record, as the progress endpoint writes it."""
    progress = {"pod": "p0", "updatedTime": "2026-11-23T10:00:00Z", "record": {"retryable": False, **record}}
    world.change(FINETUNEJOB, NAME, status={**world.status, "progress": progress})


async def test_a_record_that_went_with_its_pod_has_come_by_the_progress_endpoint_too(running: World) -> None:
    has_told(running, RECORD)
    running.delete(POD, Key("team-a", "p0"))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile()
    assert (running.status["phase"], running.condition("Complete")["reason"]) == ("Succeeded", "Published")
    assert running.status["artifacts"]["revision"] == "abcdef01"


async def test_so_has_a_failure(running: World) -> None:
    has_told(running, {"reason": "OutOfMemory", "message": "lower it"})
    running.delete(POD, Key("team-a", "p0"))
    running.batch_job_says(holds("Failed", reason="PodFailurePolicy", message="gone"), failed=1)
    await running.reconcile()
    assert (running.status["phase"], running.condition("Failed")["reason"]) == ("Failed", "OutOfMemory")


async def test_a_failed_attempts_record_is_not_that_of_a_run_that_is_done(running: World) -> None:
    has_told(running, {"reason": "InternalError", "message": "an attempt failed", "retryable": True})
    running.delete(POD, Key("team-a", "p0"))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile()
    assert running.condition("Complete")["reason"] == "RecordLost"


async def test_progress_is_never_the_reconcilers_to_write(running: World) -> None:
    has_told(running, RECORD)
    running.pod("Succeeded", ended(0, RECORD))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile()
    writes = [seen for seen in running.api.writes if seen.path.endswith("/status")]
    assert running.status["phase"] == "Succeeded"
    assert not [seen for seen in writes if "progress" in seen.body["status"]]


async def test_an_operator_that_would_build_other_objects_leaves_a_running_job_alone(running: World) -> None:
    before = {path: obj for path, obj in running.api.objects.items() if "/events/" not in path}
    kube = running.controller._kube
    elsewhere = ProgressEndpoint("https://elsewhere.svc", "PEM")
    upgraded = Controller(
        kube, "trainer:next", lambda: running.now, agent_image="agent:next", endpoint=lambda: elsewhere
    )
    running.controller = upgraded
    for _ in range(3):
        await running.reconcile()
    assert {path: obj for path, obj in running.api.objects.items() if "/events/" not in path} == before


async def test_the_end_is_the_end(running: World) -> None:
    running.pod("Succeeded", ended(0, RECORD))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile()
    done = running.status
    running.delete(JOB, TRAIN)
    running.delete(POD, Key("team-a", "p0"))
    running.change(FINETUNEJOB, NAME, metadata={**running.get(FINETUNEJOB, NAME)["metadata"], "generation": 2})
    await running.reconcile()
    assert {**running.status, "conditions": [], "observedGeneration": 1} == {**done, "conditions": []}
    # `kubectl wait` passes over a condition that speaks of an older generation.
    assert {each["observedGeneration"] for each in running.status["conditions"]} == {2}
    assert [each["lastTransitionTime"] for each in running.status["conditions"]] == [
        each["lastTransitionTime"] for each in done["conditions"]
    ]


@pytest.mark.parametrize("code", [64, 65, 66])
async def test_an_attempt_that_ends_the_run_is_not_told_as_one_that_is_made_again(running: World, code: int) -> None:
    running.pod("Failed", ended(code, {"reason": "DataInvalid", "message": "line 37"}))
    running.batch_job_says(active=0, failed=1)
    await running.reconcile()
    assert running.status["phase"] == "Running"
    running.batch_job_says(holds("Failed", reason="PodFailurePolicy"), failed=1)
    await running.reconcile()
    assert (running.status["phase"], running.status["message"]) == ("Failed", "line 37")
    assert running.told() == ["Resolved", "Bound", "TrainerRunning", "DataInvalid"]


async def test_a_fault_is_told_as_one_that_is_made_again_until_retries_are_used_up(running: World) -> None:
    fault = {"reason": "InternalError", "message": "a fault", "retryable": True}
    running.pod("Failed", ended(70, fault))
    running.batch_job_says(failed=1)
    await running.reconcile()
    assert running.status["phase"] == "Starting"
    assert "made again shortly: a fault" in running.status["message"]
    for number in (1, 2, 3):
        running.pod("Failed", ended(70, fault), f"p{number}")
    running.batch_job_says(failed=4)
    await running.reconcile()
    assert running.status["phase"] == "Running"


async def test_a_retry_that_a_quota_refuses_says_so_again_and_again_in_the_same_words(running: World) -> None:
    running.pod("Failed", ended(70, {"reason": "InternalError", "message": "a fault", "retryable": True}))
    running.batch_job_says(failed=1)
    job = running.get(JOB, TRAIN)
    running.event(job, "FailedCreate", 'pods "old" is forbidden: last week', "2026-11-16T10:00:00Z")
    assert await running.reconcile() == Requeue(NOT_STARTED)
    assert running.condition("Scheduled")["reason"] == "Waiting"
    running.event(job, "FailedCreate", 'Error creating: pods "sql-v1-train-0-abcde" is forbidden: exceeded quota')
    assert await running.reconcile(NOT_STARTED) == Requeue(REFUSED_AGAIN)
    assert running.condition("Scheduled")["reason"] == "PodRefused"
    assert "the pod is forbidden: exceeded quota" in running.status["message"]
    before = len(running.api.writes)
    running.event(job, "FailedCreate", 'Error creating: pods "sql-v1-train-0-fghij" is forbidden: exceeded quota')
    await running.reconcile(60)
    assert len(running.api.writes) == before


async def test_a_volume_that_cannot_be_mounted_is_named(world: World) -> None:
    await world.reconcile()
    world.batch_job_says(active=1)
    pod = world.pod("Pending", {"waiting": {"reason": "ContainerCreating"}})
    assert await world.reconcile() == Requeue(NOT_STARTED)
    assert world.condition("Started")["reason"] == "PullingImage"
    world.event(pod, "FailedMount", 'MountVolume.SetUp failed for volume "ca": configmap "company-ca" not found')
    await world.reconcile(NOT_STARTED)
    assert world.condition("Started")["reason"] == "PodNotPrepared"
    assert 'configmap "company-ca" not found' in world.status["message"]


async def test_nobody_is_asked_about_a_job_that_has_just_been_made(world: World) -> None:
    await world.reconcile()
    world.batch_job_says(active=1)
    for _ in range(3):
        await world.reconcile()
    assert not [seen for seen in world.api.seen if seen.method == "GET" and "/events" in seen.path]
    await world.reconcile(NOT_STARTED)
    assert [seen for seen in world.api.seen if seen.method == "GET" and "/events" in seen.path]


async def test_a_queued_pod_costs_no_requests(world: World) -> None:
    await world.reconcile()
    world.batch_job_says(active=1)
    waiting = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}
    pod = world.pod("Pending", {}, conditions=[waiting])
    del pod["spec"]["nodeName"]
    world.put(POD, pod)
    assert await world.reconcile() is None
    assert world.status["message"] == "no node takes the pod: 0/3 nodes are available"


async def test_a_missing_profile_is_waited_for(world: World) -> None:
    world.delete(TUNINGPROFILE, Key("", "default"))
    await world.reconcile()
    assert (world.status["phase"], world.condition("Validated")["reason"]) == ("Pending", "ProfileNotFound")
    there = world.put(TUNINGPROFILE, profile_with_generation())
    assert list(world.controller.keys_for(TUNINGPROFILE, there)) == [NAME]
    await world.reconcile()
    assert world.made(JOB) == 1
    assert list(world.controller.keys_for(TUNINGPROFILE, there)) == []


async def test_a_name_that_somebody_else_holds_is_left_alone(world: World) -> None:
    theirs = {"metadata": {"name": TRAIN.name, "namespace": "team-a", "uid": "theirs"}}
    world.put(JOB, theirs)
    assert await world.reconcile() == Requeue(REFUSED_AGAIN)
    assert world.condition("Validated")["reason"] == "NameTaken"
    assert world.get(JOB, TRAIN)["metadata"]["uid"] == "theirs"


async def test_what_a_deleted_job_of_the_same_name_left_is_waited_for(world: World) -> None:
    owner = {"controller": True, "uid": "the one before", "kind": "FineTuneJob", "name": "sql-v1"}
    left = {"metadata": {"name": TRAIN.name, "namespace": "team-a", "ownerReferences": [owner]}}
    world.put(JOB, left)
    with pytest.raises(Conflict, match="of an earlier owner is being removed"):
        await world.reconcile()
    assert world.told() == ["Resolved"]


async def test_a_job_that_this_version_cannot_read_keeps_its_status(running: World) -> None:
    before = running.status
    spec = {**running.get(FINETUNEJOB, NAME)["spec"], "ofTomorrow": 1}
    running.change(FINETUNEJOB, NAME, spec=spec)
    await running.reconcile()
    finding = running.condition("Validated")
    assert (finding["status"], finding["reason"]) == ("False", "InvalidSpec")
    assert "ofTomorrow" in running.status["message"]
    kept = [name for name in before if name not in ("conditions", "message")]
    assert {name: running.status[name] for name in kept} == {name: before[name] for name in kept}
    writes = len(running.api.writes)
    await running.reconcile(60)
    assert len(running.api.writes) == writes
    running.change(FINETUNEJOB, NAME, spec=request()["spec"])
    await running.reconcile()
    assert running.made(JOB) == 1


async def test_more_retries_reach_the_batch_job(running: World) -> None:
    running.change(FINETUNEJOB, NAME, spec=request(maxRetries=7)["spec"])
    await running.reconcile()
    assert running.get(JOB, TRAIN)["spec"]["backoffLimit"] == 7


async def test_a_condition_keeps_its_time_while_it_holds(running: World) -> None:
    since = running.condition("Validated")["lastTransitionTime"]
    running.pod("Succeeded", ended(0, RECORD))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile(600)
    assert running.condition("Validated")["lastTransitionTime"] == since
    assert running.condition("Complete")["lastTransitionTime"] == "2026-11-23T10:10:02Z"


async def steer(world: World, **spec: Any) -> None:
    """Change the spec as a user does, and reconcile."""
    steered(world, **spec)
    await world.reconcile()


def steered(world: World, **spec: Any) -> None:
    """Change the spec as a user does."""
    held = world.get(FINETUNEJOB, NAME)
    generation = held["metadata"]["generation"] + 1
    world.change(
        FINETUNEJOB, NAME, spec=request(**spec)["spec"], metadata={**held["metadata"], "generation": generation}
    )


async def test_a_job_that_is_created_suspended_makes_nothing(world: World) -> None:
    await steer(world, suspend=True)
    assert (world.status["phase"], world.condition("Suspended")["status"]) == ("Suspended", "True")
    assert "resolved" not in world.status
    await steer(world, suspend=False)
    assert world.made(JOB) == 1
    assert (world.condition("Suspended")["status"], world.condition("Suspended")["reason"]) == ("False", "Resumed")


async def test_suspending_stops_the_trainer_and_costs_neither_retry_nor_preemption(running: World) -> None:
    await steer(running, suspend=True)
    assert running.get(JOB, TRAIN)["spec"]["suspend"] is True
    assert (running.status["phase"], running.status["message"]) == ("Running", "the trainer is told to stop")
    running.pod("Failed", ended(75, PREEMPTED, 40))
    running.batch_job_says(holds("Suspended"))
    await running.reconcile()
    assert (running.status["phase"], running.condition("Suspended")["status"]) == ("Suspended", "True")
    assert (running.status["attempts"], running.status.get("preemptions", 0)) == (1, 0)
    assert running.status["activeSeconds"] == 40
    writes = len(running.api.writes)
    assert await running.reconcile(600) is None
    assert len(running.api.writes) == writes
    await steer(running, suspend=False)
    assert running.get(JOB, TRAIN)["spec"]["suspend"] is False
    running.pod("Running", RUNNING, "p1")
    await running.reconcile()
    assert (running.status["phase"], running.status["attempts"]) == ("Running", 2)
    assert running.made(JOB) == 1


async def test_interruptions_are_counted_apart_and_have_an_end(running: World) -> None:
    await steer(running, maxPreemptions=2)
    for number in range(3):
        assert running.status["phase"] != "Failed"
        drained: dict[str, Any] = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]} if number else {}
        running.pod("Failed", ended(75 if not number else 137, PREEMPTED), f"p{number}", **drained)
        await running.reconcile()
    assert (running.status["phase"], running.condition("Failed")["reason"]) == ("Failed", "PreemptedTooOften")
    assert running.status["preemptions"] == 3
    await running.reconcile()
    assert running.get(JOB, TRAIN)["spec"]["activeDeadlineSeconds"] == 1


async def test_a_pod_that_is_gone_stays_counted(running: World) -> None:
    running.pod("Failed", ended(75, PREEMPTED, 50))
    await running.reconcile()
    running.delete(POD, Key("team-a", "p0"))
    running.pod("Running", {"running": {"startedAt": "2026-11-23T10:05:00Z"}}, "p1")
    for _ in range(3):
        await running.reconcile()
    status = running.status
    assert (status["attempts"], status["preemptions"], status["activeSeconds"]) == (2, 1, 50)


async def test_a_pod_that_was_drained_and_removed_while_nobody_looked_is_counted(running: World) -> None:
    running.delete(POD, Key("team-a", "p0"))
    running.pod("Running", {"running": {"startedAt": "2026-11-23T10:06:00Z"}}, "p5")
    for _ in range(3):
        await running.reconcile()
    status = running.status
    # It ran from 10:00:02 until its successor was made.
    assert (status["attempts"], status["preemptions"], status["activeSeconds"]) == (2, 1, 298)


async def test_so_is_one_without_a_successor_for_as_long_as_it_told_of_itself(running: World) -> None:
    """Its time counts towards a deadline, so what nobody knows is not counted."""
    progress = {"pod": "p0", "updatedTime": "2026-11-23T10:01:02Z"}
    running.change(FINETUNEJOB, NAME, status={**running.status, "progress": progress})
    running.delete(POD, Key("team-a", "p0"))
    await running.reconcile(10_000)
    assert (running.status["preemptions"], running.status["activeSeconds"]) == (1, 60)
    running.pod("Running", {"running": {"startedAt": "2026-11-23T10:06:00Z"}}, "p5")
    await running.reconcile(600)
    assert (running.status["preemptions"], running.status["activeSeconds"]) == (1, 60)


async def test_one_that_nothing_is_known_of_costs_no_time(running: World) -> None:
    running.delete(POD, Key("team-a", "p0"))
    await running.reconcile(10_000)
    assert (running.status["preemptions"], running.status.get("activeSeconds", 0)) == (1, 0)


async def test_a_pod_that_a_suspension_stops_is_no_preemption_though_the_run_goes_on_before_it_has_ended(
    running: World,
) -> None:
    await steer(running, suspend=True)
    await running.reconcile()
    await steer(running, suspend=False)
    running.pod("Failed", ended(75, PREEMPTED, 40))
    await running.reconcile()
    running.pod("Running", RUNNING, "p1")
    await running.reconcile()
    assert (running.status["attempts"], running.status.get("preemptions", 0)) == (2, 0)


async def test_a_batch_job_that_is_being_deleted_is_no_preemption_either(running: World) -> None:
    await steer(running, maxPreemptions=0)
    metadata = running.get(JOB, TRAIN)["metadata"]
    running.change(JOB, TRAIN, metadata={**metadata, "deletionTimestamp": "2026-11-23T10:00:30Z"})
    running.pod("Failed", ended(75, PREEMPTED, 40))
    await running.reconcile()
    running.delete(JOB, TRAIN)
    await running.reconcile()
    assert running.condition("Failed")["reason"] == "JobDeleted"
    assert running.status["activeSeconds"] == 40


async def test_a_pod_that_went_with_its_node_after_the_end_was_not_interrupted(running: World) -> None:
    running.delete(POD, Key("team-a", "p0"))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile(6000)
    assert running.status.get("preemptions", 0) == 0
    assert running.status["activeSeconds"] == 298, "until the batch Job was complete"


async def test_the_deadline_counts_running_time_over_all_attempts(running: World) -> None:
    await steer(running, activeDeadlineSeconds=100)
    running.pod("Failed", ended(75, PREEMPTED, 50))
    await running.reconcile(3600)
    assert running.status["phase"] != "Failed"
    running.now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    running.pod("Running", {"running": {"startedAt": "2026-11-23T12:00:00Z"}}, "p1")
    assert await running.reconcile(20) == Requeue(30.0)
    assert await running.reconcile(30) is None
    assert (running.status["phase"], running.condition("Failed")["reason"]) == ("Failed", "DeadlineExceeded")
    assert "ran for 100 s" in running.status["message"]
    await running.reconcile()
    assert running.get(JOB, TRAIN)["spec"]["activeDeadlineSeconds"] == 1


async def test_a_container_that_was_killed_for_its_memory_is_not_made_again(running: World) -> None:
    running.pod("Failed", ended(137, {}, reason="OOMKilled"))
    running.batch_job_says(failed=1)
    await running.reconcile()
    assert (running.status["phase"], running.condition("Failed")["reason"]) == ("Failed", "OutOfMemory")


async def test_the_ttl_reaches_the_batch_job_when_its_end_is_written(running: World) -> None:
    await steer(running, ttlSecondsAfterFinished=60)
    assert "ttlSecondsAfterFinished" not in running.get(JOB, TRAIN)["spec"]
    running.pod("Succeeded", ended(0, RECORD))
    running.batch_job_says(holds("Complete"), succeeded=1)
    await running.reconcile()
    await running.reconcile()
    spec = running.get(JOB, TRAIN)["spec"]
    assert spec["ttlSecondsAfterFinished"] == 60
    assert "activeDeadlineSeconds" not in spec
    running.delete(JOB, TRAIN)
    running.delete(POD, Key("team-a", "p0"))
    writes = len(running.api.writes)
    await running.reconcile()
    assert (running.status["phase"], len(running.api.writes)) == ("Succeeded", writes)


async def test_a_job_that_waits_long_is_looked_at_seldom(world: World) -> None:
    """A thousand jobs that wait for a quota would keep the operator and the API server busy with questions."""
    assert await world.reconcile() == Requeue(NOT_STARTED)
    world.batch_job_says(active=0)
    later = await world.reconcile(20)
    assert later is not None
    assert later.after == pytest.approx(20, abs=2)
    assert await world.reconcile(6000) == Requeue(PATIENCE)
