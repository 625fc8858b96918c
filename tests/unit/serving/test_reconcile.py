"""What the operator makes of a ModelDeployment, step by step: its API server and its agents answer over HTTP."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from lorikeet_api import names
from lorikeet_api.serving import LOOKED_UP_AT_ONCE, fingerprint
from lorikeet_operator.kinds import FINETUNEJOB, MODELDEPLOYMENT, TUNINGPROFILE
from lorikeet_operator.kube.errors import Conflict
from lorikeet_operator.kube.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    EVENT,
    JOB,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Key,
    controller_uid,
)
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.times import timestamp
from lorikeet_operator.serving.pace import SHIFTING, STARTING
from lorikeet_operator.serving.reconcile import (
    HURRY_AGAIN,
    QUIET,
    REFUSED_AGAIN,
    SAID_AGAIN,
)
from tests.resources import UID, profile_body
from tests.unit.kube.api import _failure
from tests.unit.serving.world import (
    BASE,
    ENGINE,
    FIRST,
    FROM_JOB,
    FROM_URI,
    NAME,
    PIN,
    ROUTER,
    SECOND,
    SPLIT,
    THIRD,
    World,
    cluster,
    failed,
    found,
    loaded,
    loading,
    request,
)

OLD, NEW = "sql-11111111", "sql-22222222"


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A profile, and an operator that has nothing to do yet."""
    async with cluster() as made:
        yield made


@pytest.fixture
async def serving(world: World) -> World:
    """Two replicas that serve the base model and the adapter of a job, whose traffic is split between the two."""
    world.job(sha256=FIRST)
    world.put(MODELDEPLOYMENT, request(replicas=2, adapters=[FROM_JOB], routes=SPLIT))
    await world.settle()
    return world


# How it comes to be


async def test_at_first_a_pod_is_asked_what_model_and_adapters_are(world: World) -> None:
    world.put(MODELDEPLOYMENT, request(adapters=[FROM_URI]))
    assert await world.reconcile() == Requeue(REFUSED_AGAIN)
    (lookup,) = world.lookups()
    asked = world.asked(lookup)
    assert asked.model is not None
    assert (asked.model.uri, [each.uri for each in asked.adapters]) == (
        "s3://models/smollm2-135m",
        ["s3://adapters/dpo"],
    )
    assert (world.status["phase"], world.condition("Ready")) == ("Pending", ("False", "Resolving"))
    assert world.all(DEPLOYMENT) == []
    assert world.told() == []


async def test_then_engines_and_routers_are_made_for_what_was_found(world: World) -> None:
    world.put(MODELDEPLOYMENT, request(adapters=[FROM_URI]))
    await world.reconcile()
    world.answers(found("dpo", SECOND))
    await world.reconcile()
    assert world.status["modelPin"] == PIN
    (adapter,) = world.status["adapters"]
    assert (adapter["servedName"], adapter["uri"]) == ("dpo-22222222", "s3://adapters/dpo/run")
    kinds = (CONFIG_MAP, SERVICE, DEPLOYMENT, DISRUPTION_BUDGET, NETWORK_POLICY)
    children = [each for kind in kinds for each in world.all(kind)]
    assert {(each["kind"], each["metadata"]["name"]) for each in children} == {
        *(
            (kind, ENGINE.name)
            for kind in ("ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy")
        ),
        *((kind, ROUTER.name) for kind in ("ConfigMap", "Deployment", "PodDisruptionBudget")),
        ("Service", NAME.name),
    }
    assert {controller_uid(each) for each in children} == {UID}
    assert world.status["phase"] == "Progressing"
    assert world.status["url"] == "http://assistant.team-a.svc/v1"


async def test_what_was_found_is_not_looked_up_again(world: World) -> None:
    world.put(MODELDEPLOYMENT, request(adapters=[FROM_URI]))
    await world.reconcile()
    world.answers(found("dpo"))
    await world.reconcile()
    for pod in world.all(POD):
        world.delete(POD, Key("team-a", pod["metadata"]["name"]))
    world.delete(JOB, Key("team-a", world.lookups()[0]["metadata"]["name"]))
    await world.reconcile()
    assert world.lookups() == []
    assert world.wanted() == ["dpo-22222222"]


async def test_it_is_available_once_engines_have_the_adapters_and_routers_lead_to_them(world: World) -> None:
    world.job(sha256=FIRST)
    world.put(MODELDEPLOYMENT, request(adapters=[FROM_JOB]))
    await world.reconcile()
    world.answers()
    await world.reconcile()
    world.rolls_out()
    world.engine(0, engine=False)
    world.routers_lead()
    assert await world.reconcile() == Requeue(STARTING)
    assert world.condition("AdaptersReady") == ("False", "Starting")
    world.engine(0, loading(OLD))
    assert await world.reconcile() == Requeue(SHIFTING)
    assert world.condition("AdaptersReady") == ("False", "Loading")
    assert world.led() == {"assistant": {"base": (BASE, 1)}, "sql": {}}
    world.engines_load()
    assert await world.reconcile() == Requeue(SHIFTING)
    assert (world.condition("AdaptersReady"), world.condition("RouterReady")) == (
        ("True", "Loaded"),
        ("False", "Shifting"),
    )
    world.routers_lead()
    assert await world.reconcile() == Requeue(QUIET)
    assert (world.status["phase"], world.condition("Ready")) == ("Available", ("True", "Serving"))
    assert (world.status["ready"], world.status["adaptersReady"], world.status["replicas"]) == ("1/1", "1/1", 1)
    assert world.led() == {"assistant": {"base": (BASE, 1)}, "sql": {"sql": (OLD, 1)}}
    assert world.told() == [("Normal", reason) for reason in ("Loaded", "Serving", "Routing")]


@pytest.mark.parametrize("restarted", [False, True], ids=["the same operator", "another operator"])
async def test_nothing_is_written_while_nothing_changes(world: World, restarted: bool) -> None:
    """Whatever the API server makes of what it is told: other words for quantities, defaults, nothing for no text."""
    resources = {"requests": {"cpu": "1000m", "memory": 2**31}}
    env = [{"name": "HTTPS_PROXY", "value": ""}]
    world.put(MODELDEPLOYMENT, request(compute={"gpus": 2, "resources": resources, "env": env}, adapters=[FROM_URI]))
    await world.settle()
    before = len(world.api.writes)
    if restarted:
        world.restart()
    for _ in range(3):
        assert await world.reconcile(seconds=60) == Requeue(QUIET)
    assert len(world.api.writes) == before


# Adapters of jobs


async def test_a_job_that_has_not_finished_is_waited_for(world: World) -> None:
    world.job(phase="Running")
    world.put(MODELDEPLOYMENT, request(adapters=[FROM_JOB]))
    await world.reconcile()
    world.answers()
    await world.reconcile()
    world.rolls_out()
    world.engines_load()
    world.routers_lead()
    assert await world.reconcile() == Requeue(STARTING)
    assert world.condition("AdaptersReady") == ("False", "JobNotFinished")
    assert (world.status["phase"], world.status["adaptersReady"]) == ("Progressing", "0/1")
    assert "FineTuneJob sql-v1 is Running" in world.status["message"]
    assert world.condition("Degraded")[0] == "False"
    assert world.wanted() == []


async def test_its_adapter_is_wanted_at_once_and_led_to_only_when_every_replica_has_it(world: World) -> None:
    world.job(phase="Running")
    world.put(MODELDEPLOYMENT, request(replicas=2, adapters=[FROM_JOB], routes=SPLIT))
    await world.reconcile()
    world.answers()
    await world.reconcile()
    world.rolls_out()
    world.engines_load()
    world.routers_lead()
    await world.reconcile()
    assert world.led() == {"support": {"b": (BASE, 10)}}, "its sibling answers for it"
    world.job(sha256=FIRST)
    assert list(world.controller.keys_for(FINETUNEJOB, world.get(FINETUNEJOB, Key("team-a", "sql-v1")))) == [NAME]
    await world.reconcile()
    assert world.wanted() == [OLD]
    world.engines_load(0)
    await world.reconcile()
    assert world.led() == {"support": {"b": (BASE, 10)}}
    assert world.status["adapters"][0]["readyReplicas"] == 1
    world.engines_load()
    await world.reconcile()
    assert world.led() == {"support": {"a": (OLD, 90), "b": (BASE, 10)}}
    (entry,) = world.status["history"]
    assert (entry["adapter"], entry["sha256"], entry["reason"]) == ("sql", FIRST, "FineTuneJob sql-v1")


async def test_a_job_that_is_deleted_while_it_is_served_stays_served(serving: World) -> None:
    gone = serving.get(FINETUNEJOB, Key("team-a", "sql-v1"))
    serving.delete(FINETUNEJOB, Key("team-a", "sql-v1"))
    assert list(serving.controller.keys_for(FINETUNEJOB, gone)) == [NAME]
    before = len(serving.api.writes)
    serving.restart()
    assert await serving.reconcile() == Requeue(QUIET)
    assert len(serving.api.writes) == before
    assert serving.led()["support"]["a"] == (OLD, 90)


async def test_a_job_that_is_made_anew_is_served_by_its_old_result_until_it_has_another(serving: World) -> None:
    serving.job(phase="Running")
    assert await serving.reconcile() == Requeue(QUIET)
    assert (serving.status["phase"], serving.wanted()) == ("Available", [OLD])
    serving.job(sha256=SECOND)
    await serving.settle()
    assert serving.led()["support"]["a"] == (NEW, 90)


# Shifts


async def test_a_change_of_weights_is_with_the_routers_after_one_reconcile(serving: World) -> None:
    even = [{**SPLIT[0], "variants": [{"name": "a", "adapter": "sql", "weight": 50}, {"name": "b", "weight": 50}]}]
    serving.steer(routes=even)
    assert await serving.reconcile() == Requeue(SHIFTING)
    assert serving.led() == {"support": {"a": (OLD, 50), "b": (BASE, 50)}}
    told = fingerprint(serving.routers_file().encode())
    marks = [pod["metadata"]["annotations"][names.ANNOTATION_WANTED] for pod in serving.pods(names.ROUTER)]
    assert [mark.partition(".")[0] for mark in marks] == [told, told], (
        "each kubelet is told that there is something new"
    )
    hurried = [each for each in serving.api.writes if "/pods/" in each.path]
    assert all(each.path.endswith("/status") for each in hurried), "the one right on pods that the operator has"
    assert serving.condition("RouterReady") == ("False", "Shifting")
    serving.routers_lead(0)
    assert await serving.reconcile() == Requeue(SHIFTING)
    serving.routers_lead()
    assert await serving.reconcile() == Requeue(QUIET)
    assert serving.status["phase"] == "Available"


async def test_a_kubelet_whose_pod_goes_on_reading_what_was_there_before_is_told_again(serving: World) -> None:
    def hurried() -> int:
        return sum("/pods/" in each.path for each in serving.api.writes)

    before = hurried()
    serving.now = datetime(2026, 11, 23, 11, tzinfo=UTC)
    serving.steer(routes=[{**SPLIT[0], "sticky": {"header": "x-user-id"}}])
    await serving.reconcile(seconds=0)
    assert hurried() == before + 2
    serving.routers_lead(0)
    await serving.reconcile(seconds=HURRY_AGAIN / 2)
    assert hurried() == before + 2, "it gets its time"
    await serving.reconcile(seconds=HURRY_AGAIN / 2)
    assert hurried() == before + 3
    del serving.agents.states[serving.address(names.ROUTER, 1)]
    await serving.reconcile(seconds=60)
    assert hurried() == before + 3, "nobody knows what one has read that does not answer"


async def test_a_new_revision_is_loaded_led_to_and_the_old_one_then_drained_and_forgotten(serving: World) -> None:
    serving.job(sha256=SECOND)
    await serving.reconcile()
    assert (serving.wanted(), serving.led()["support"]["a"]) == ([OLD, NEW], (OLD, 90)), (
        "it is loaded beside the old one"
    )
    serving.engines_load(0)
    await serving.reconcile()
    assert serving.led()["support"]["a"] == (OLD, 90), "not everywhere yet"
    serving.engines_load()
    await serving.reconcile()
    assert (serving.wanted(), serving.led()["support"]["a"]) == ([OLD, NEW], (NEW, 90)), "traffic is shifted"
    serving.routers_lead(0)
    await serving.reconcile()
    assert serving.wanted() == [OLD, NEW], "the other router may lead to it still"
    serving.routers_lead(busy=[OLD])
    assert await serving.reconcile() == Requeue(SHIFTING)
    assert serving.wanted() == [OLD, NEW], "a request is on its way"
    serving.routers_lead()
    assert await serving.reconcile() == Requeue(QUIET)
    assert serving.wanted() == [NEW]
    assert [each["sha256"] for each in serving.status["history"]] == [FIRST, SECOND]
    assert serving.status["phase"] == "Available"
    assert len(serving.all(POD)) == 5, (
        "no pod was replaced: two engines, two routers, and the one that looked things up"
    )


async def test_a_shift_holds_though_its_status_was_not_written(serving: World) -> None:
    serving.job(sha256=SECOND)
    await serving.reconcile()
    serving.engines_load()
    before = serving.status
    await serving.reconcile()
    assert serving.led()["support"]["a"] == (NEW, 90)
    serving.change(MODELDEPLOYMENT, NAME, status=before)
    await serving.reconcile()
    assert serving.led()["support"]["a"] == (NEW, 90)


async def test_what_does_not_move_is_looked_at_less_and_less_often_until_something_does(serving: World) -> None:
    serving.job(sha256=SECOND)
    assert await serving.reconcile() == Requeue(SHIFTING)
    serving.engine(0, loaded(OLD), loading(NEW))
    del serving.agents.states[serving.address(names.ROUTER, 0)]
    assert await serving.reconcile() == Requeue(SHIFTING)
    assert await serving.reconcile(seconds=40) == Requeue(2.0)
    assert await serving.reconcile(seconds=40) == Requeue(4.0)
    assert await serving.reconcile(seconds=600) == Requeue(STARTING)
    serving.engine(0, loaded(OLD), loaded(NEW))
    assert await serving.reconcile() == Requeue(SHIFTING)


async def test_an_earlier_revision_comes_back_by_its_digest(serving: World) -> None:
    serving.job(sha256=SECOND)
    await serving.settle()
    first = serving.status["history"][0]
    before = len(serving.lookups())
    serving.steer(adapters=[{"name": "sql", "from": {"uri": first["uri"], "sha256": first["sha256"]}}])
    await serving.reconcile()
    assert serving.wanted() == [OLD, NEW], "it is loaded at once"
    await serving.settle()
    assert len(serving.lookups()) == before, "no pod had to look for what history knows"
    assert (serving.led()["support"]["a"], serving.wanted()) == ((OLD, 90), [OLD])
    assert [each["sha256"] for each in serving.status["history"]] == [FIRST, SECOND, FIRST]


async def test_a_spec_that_changes_three_times_between_two_looks_ends_where_it_is_then(serving: World) -> None:
    for weight in (80, 70, 60):
        variants = [{"name": "a", "adapter": "sql", "weight": weight}, {"name": "b", "weight": 10}]
        serving.steer(routes=[{**SPLIT[0], "variants": variants}], replicas=weight // 20)
    await serving.settle()
    assert serving.led()["support"]["a"] == (OLD, 60)
    assert serving.get(DEPLOYMENT, ENGINE)["spec"]["replicas"] == 3
    assert serving.status["observedGeneration"] == serving.get(MODELDEPLOYMENT, NAME)["metadata"]["generation"]


async def test_an_adapter_that_is_named_no_longer_is_drained_too(serving: World) -> None:
    serving.steer(adapters=[], routes=[])
    await serving.reconcile()
    assert (serving.led(), serving.wanted()) == ({"assistant": {"base": (BASE, 1)}}, [OLD])
    serving.routers_lead()
    await serving.reconcile()
    assert serving.wanted() == []


# Trouble


async def test_an_adapter_that_engines_refuse_is_told_and_the_old_one_stays_served(serving: World) -> None:
    serving.job(sha256=SECOND)
    await serving.reconcile()
    for number in range(2):
        serving.engine(number, loaded(OLD), failed(NEW))
    await serving.reconcile()
    assert (serving.status["phase"], serving.condition("Degraded")) == ("Degraded", ("True", "RankTooHigh"))
    assert "adapter sql on pod assistant-engine-0: rank 64 is above maxLoraRank 16" in serving.status["message"]
    assert (serving.wanted(), serving.led()["support"]["a"]) == ([OLD, NEW], (OLD, 90))
    assert serving.told().count(("Warning", "RankTooHigh")) == 1, "three conditions say it, and one Event"


async def test_an_adapter_that_has_failed_is_looked_at_seldom(serving: World) -> None:
    """Its agent tries again slowly: who asks twice a second learns nothing, and a thousand deployments cost much."""
    serving.job(sha256=SECOND)
    await serving.reconcile()
    for number in range(2):
        serving.engine(number, loaded(OLD), failed(NEW))
    assert await serving.reconcile() == Requeue(STARTING)
    serving.job(sha256=THIRD)
    assert await serving.reconcile() == Requeue(SHIFTING), "another revision is on its way"
    serving.engines_load()
    await serving.settle()
    assert (serving.status["phase"], serving.wanted()) == ("Available", ["sql-33333333"])


async def test_what_keeps_a_pod_from_serving_is_told(world: World) -> None:
    world.put(MODELDEPLOYMENT, request())
    await world.reconcile()
    world.answers()
    await world.reconcile()
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    statuses = [{"name": names.ENGINE_CONTAINER, "state": {"waiting": waiting}}]
    world.pod(names.ENGINE, 0, ready=False, phase="Pending", containerStatuses=statuses)
    await world.reconcile()
    assert (world.status["phase"], world.condition("Ready")) == ("Failed", ("False", "ImagePullFailed"))
    assert "no such image" in world.status["message"]
    world.pod(names.ENGINE, 0)
    await world.settle()
    assert world.status["phase"] == "Available"


async def test_a_replica_that_finds_no_room_beside_those_it_is_to_replace_is_told(serving: World) -> None:
    serving.steer(compute={"resources": {"requests": {"memory": "8Gi"}}})
    await serving.reconcile()
    condition = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes: insufficient nvidia.com/gpu"}
    surge = serving.pod(names.ENGINE, 2, phase="Pending", conditions=[condition], podIP="")
    serving.put(POD, {**surge, "spec": {"containers": []}})
    serving.counts(ENGINE, 2, replicas=3, updated=1)
    await serving.reconcile()
    assert (serving.status["phase"], serving.condition("Degraded")) == ("Degraded", ("True", "WaitsForSurge"))
    assert serving.led()["support"]["a"] == (OLD, 90), "the two that are there serve on"


async def test_what_a_node_says_that_prepares_a_pod_in_vain_is_told_for_as_long_as_it_says_so(world: World) -> None:
    world.put(MODELDEPLOYMENT, request())
    await world.reconcile()
    world.answers()
    await world.reconcile()
    pod = world.pod(names.ENGINE, 0, ready=False, phase="Pending", podIP="")
    about = {"uid": pod["metadata"]["uid"]}
    event = {"involvedObject": about, "reason": "FailedMount", "message": 'configmap "company-ca" not found'}
    began = world.now
    world.put(EVENT, {**event, "metadata": {"name": "e1", "namespace": "team-a"}, "lastTimestamp": timestamp(began)})
    await world.reconcile(seconds=STARTING)
    assert (world.status["phase"], world.condition("Ready")) == ("Failed", ("False", "PodNotPrepared"))
    assert 'configmap "company-ca" not found' in world.status["message"]
    await world.reconcile(seconds=SAID_AGAIN.total_seconds())
    assert (world.status["phase"], world.condition("Ready")) == ("Progressing", ("False", "Starting"))


async def test_a_quota_that_keeps_a_replica_from_having_a_pod_is_told(serving: World) -> None:
    serving.steer(replicas=3)
    await serving.reconcile()
    message = 'pods "assistant-engine-0-abcde" is forbidden: exceeded quota'
    condition = {"type": "ReplicaFailure", "status": "True", "message": message}
    serving.counts(ENGINE, 2)
    status = serving.get(DEPLOYMENT, ENGINE)["status"]
    serving.change(DEPLOYMENT, ENGINE, status={**status, "conditions": [condition]})
    await serving.reconcile()
    assert (serving.status["phase"], serving.condition("Ready")) == ("Degraded", ("False", "PodRefused"))
    assert "the pod is forbidden: exceeded quota" in serving.status["message"]
    before = len(serving.api.writes)
    condition["message"] = message.replace("abcde", "fghij")
    serving.change(DEPLOYMENT, ENGINE, status={**status, "conditions": [condition]})
    await serving.reconcile()
    assert len(serving.api.writes) == before


async def test_one_that_serves_and_is_refused_again_and_again_is_degraded_all_the_time(serving: World) -> None:
    serving.delete(TUNINGPROFILE, Key("", "default"))
    for _ in range(3):
        await serving.reconcile(seconds=30)
        assert serving.status["phase"] == "Degraded"
        assert serving.condition("Ready") == ("False", "ProfileNotFound")
        assert serving.condition("Degraded") == ("True", "ProfileNotFound")
    serving.put(TUNINGPROFILE, profile_body())
    await serving.settle()
    assert serving.condition("Degraded")[0] == "False"


async def test_a_name_that_somebody_else_holds_is_left_alone_and_starts_no_engine(world: World) -> None:
    theirs = {"metadata": {"name": NAME.name, "namespace": "team-a"}, "spec": {"ports": []}}
    world.put(SERVICE, theirs, seen=False)
    world.put(MODELDEPLOYMENT, request())
    await world.reconcile()
    world.answers()
    for _ in range(2):
        assert await world.reconcile() == Requeue(REFUSED_AGAIN)
        assert (world.status["phase"], world.condition("Ready")) == ("Failed", ("False", "NameTaken"))
    assert "services team-a/assistant exists and belongs to something else" in world.status["message"]
    assert world.get(SERVICE, NAME)["spec"] == {"ports": []}
    assert DEPLOYMENT.path(*ENGINE) not in world.api.objects
    world.delete(SERVICE, NAME)
    await world.settle()


async def test_a_missing_profile_is_waited_for(world: World) -> None:
    world.delete(TUNINGPROFILE, Key("", "default"))
    world.put(MODELDEPLOYMENT, request())
    assert await world.reconcile() == Requeue(REFUSED_AGAIN)
    assert (world.status["phase"], world.condition("Ready")) == ("Failed", ("False", "ProfileNotFound"))
    there = world.put(TUNINGPROFILE, profile_body())
    assert list(world.controller.keys_for(TUNINGPROFILE, there)) == [NAME]
    await world.settle()


async def test_a_change_of_the_profile_reaches_what_is_served(serving: World) -> None:
    changed = serving.put(TUNINGPROFILE, profile_body(images={"vllm": "vllm:next"}))
    assert list(serving.controller.keys_for(TUNINGPROFILE, changed)) == [NAME]
    await serving.reconcile()
    (engine,) = serving.get(DEPLOYMENT, ENGINE)["spec"]["template"]["spec"]["containers"]
    assert engine["image"] == "vllm:next"
    assert serving.condition("Ready") == ("False", "Starting"), "others are being replaced"


async def test_what_the_api_server_refuses_is_told(serving: World) -> None:
    serving.steer(replicas=3)
    serving.api.answers.append(_failure(422, "Invalid", message="spec.template: too odd"))
    assert await serving.reconcile() == Requeue(REFUSED_AGAIN)
    assert serving.condition("Ready") == ("False", "InvalidSpec")
    assert "spec.template: too odd" in serving.status["message"]
    serving.api.answers.append(_failure(403, "Forbidden", message="exceeded quota"))
    await serving.reconcile()
    assert serving.condition("Ready") == ("False", "Forbidden")
    assert "exceeded quota" in serving.status["message"]
    await serving.settle()


async def test_one_that_this_version_cannot_read_keeps_its_status_and_what_serves_it(serving: World) -> None:
    before = serving.status
    spec = serving.get(MODELDEPLOYMENT, NAME)["spec"]
    serving.change(MODELDEPLOYMENT, NAME, spec={**spec, "ofTomorrow": 1})
    for _ in range(2):
        assert await serving.reconcile() is None
    assert "ofTomorrow" in serving.status["message"]
    assert {**serving.status, "message": before["message"]} == before
    writes = len(serving.api.writes)
    await serving.reconcile()
    assert len(serving.api.writes) == writes
    serving.change(MODELDEPLOYMENT, NAME, spec=spec)
    await serving.settle()
    assert serving.status == before


# Look-ups


async def test_a_model_that_is_not_there_is_told(world: World) -> None:
    world.put(MODELDEPLOYMENT, request())
    await world.reconcile()
    world.answers(pin="", reason="ModelNotFound", message="s3://models/smollm2-135m is empty: correct spec.model.uri")
    await world.reconcile()
    assert (world.status["phase"], world.condition("Ready")) == ("Failed", ("False", "ModelNotFound"))
    assert "correct spec.model.uri" in world.status["message"]
    assert world.all(DEPLOYMENT) == []


async def test_an_adapter_without_manifest_is_told_and_looked_for_again_once_its_job_is_gone(serving: World) -> None:
    serving.steer(adapters=[FROM_JOB, FROM_URI])
    await serving.reconcile()
    serving.answers({"name": "dpo", "reason": "ManifestMissing", "message": "nothing is there"})  # type: ignore[arg-type]
    await serving.reconcile()
    assert (serving.status["phase"], serving.condition("AdaptersReady")) == ("Degraded", ("False", "ManifestMissing"))
    assert "adapter dpo: nothing is there" in serving.status["message"]
    assert serving.led()["support"]["a"] == (OLD, 90), "the other one is served on"
    lookup = Key("team-a", serving.lookups()[-1]["metadata"]["name"])
    serving.delete(JOB, lookup)
    serving.delete(POD, Key("team-a", f"{lookup.name}-pod"))
    await serving.reconcile()
    serving.answers(found("dpo", SECOND))
    await serving.settle()
    assert serving.wanted() == ["dpo-22222222", OLD]


async def test_a_store_that_is_away_is_told_where_an_adapter_is_looked_up(serving: World) -> None:
    serving.steer(adapters=[FROM_JOB, FROM_URI])
    await serving.reconcile()
    assert serving.condition("AdaptersReady") == ("False", "Resolving")
    serving.answers(reason="StorageUnreachable", message="http://s3:7070 does not answer", retryable=True)
    await serving.reconcile()
    assert serving.condition("AdaptersReady") == ("False", "StorageUnreachable")
    assert "http://s3:7070 does not answer" in serving.status["message"]
    assert serving.led()["support"]["a"] == (OLD, 90)


async def test_what_keeps_the_pod_of_a_look_up_from_its_work_is_told(world: World) -> None:
    world.put(MODELDEPLOYMENT, request())
    await world.reconcile()
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "s3-credentials" not found'}
    world.lookup_pod(world.lookups()[-1], {"state": {"waiting": waiting}})
    await world.reconcile()
    assert world.condition("Ready") == ("False", "ContainerConfigInvalid")
    assert 'secret "s3-credentials" not found' in world.status["message"]
    assert world.condition("Degraded")[0] == "False", "nothing is served yet"


async def test_a_quota_that_keeps_a_look_up_from_having_a_pod_is_told(world: World) -> None:
    world.put(MODELDEPLOYMENT, request())
    await world.reconcile()
    lookup = world.lookups()[-1]
    world.change(JOB, Key("team-a", lookup["metadata"]["name"]), status={"startTime": "2026-11-23T10:00:00Z"})
    metadata = {"name": "e1", "namespace": "team-a"}
    about = {"uid": lookup["metadata"]["uid"]}
    event = {"metadata": metadata, "involvedObject": about, "reason": "FailedCreate", "message": "exceeded quota"}
    world.put(EVENT, {**event, "lastTimestamp": "2026-11-23T10:00:01Z"})
    await world.reconcile(seconds=REFUSED_AGAIN)
    assert world.condition("Ready") == ("False", "PodRefused")
    assert "exceeded quota" in world.status["message"]


async def test_more_adapters_than_one_pod_is_asked_for_are_all_looked_up(world: World) -> None:
    """Though the first ones are nowhere to be found."""
    count = LOOKED_UP_AT_ONCE + 1
    adapters = [{"name": f"a{number}", "from": {"uri": f"s3://adapters/{number}"}} for number in range(count)]
    world.put(MODELDEPLOYMENT, request(adapters=adapters))
    await world.reconcile()
    missing = [{"name": each["name"], "reason": "ManifestMissing", "message": "no"} for each in adapters[:-1]]
    world.answers(*missing, job=world.lookups()[0])  # type: ignore[arg-type]
    await world.reconcile()
    last = world.lookups()[-1]
    assert [each.name for each in world.asked(last).adapters] == ["a8"]
    world.answers(found("a8", SECOND), job=last)
    await world.reconcile()
    assert world.wanted() == ["a8-22222222"]


# Whom a change concerns, and what is nobody's


async def test_deployments_of_one_name_in_two_namespaces_have_nothing_to_do_with_each_other(serving: World) -> None:
    other = Key("team-b", "assistant")
    serving.job(sha256=SECOND, namespace="team-b")
    serving.put(MODELDEPLOYMENT, request(namespace="team-b", uid="other", adapters=[FROM_JOB]))
    before = {path: obj for path, obj in serving.api.objects.items() if "/team-a/" in path and "/pods/" not in path}
    await serving.settle(other)
    assert serving.wanted(other) == [NEW]
    assert {path: serving.api.objects[path] for path in before} == before
    assert controller_uid(serving.get(DEPLOYMENT, Key("team-b", ENGINE.name))) == "other"
    assert serving.controller.phases() == {"Available": 2}
    assert serving.controller.standing() == {
        ("team-a", "assistant", "Available"): 1,
        ("team-b", "assistant", "Available"): 1,
    }


async def test_a_change_concerns_the_owner_and_those_that_refer_to_it(serving: World) -> None:
    def concerns(kind: Any, obj: dict[str, Any]) -> list[Key]:
        return list(serving.controller.keys_for(kind, obj))

    children = ((DEPLOYMENT, ENGINE), (CONFIG_MAP, ROUTER), (SERVICE, NAME), (DISRUPTION_BUDGET, ENGINE))
    for kind, key in (*children, (NETWORK_POLICY, ENGINE)):
        assert concerns(kind, serving.get(kind, key)) == [NAME]
    assert concerns(MODELDEPLOYMENT, serving.get(MODELDEPLOYMENT, NAME)) == [NAME]
    assert {key for pod in serving.all(POD) for key in concerns(POD, pod)} == {NAME}
    assert concerns(JOB, serving.lookups()[0]) == [NAME]
    others = {"metadata": {"name": "x", "namespace": "team-a", "labels": {names.LABEL_FINETUNEJOB: "sql-v1"}}}
    assert (concerns(POD, others), concerns(JOB, others)) == ([], [])
    serving.job("another", sha256=SECOND)
    assert concerns(FINETUNEJOB, serving.get(FINETUNEJOB, Key("team-a", "another"))) == []
    serving.job(namespace="team-b")
    assert concerns(FINETUNEJOB, serving.get(FINETUNEJOB, Key("team-b", "sql-v1"))) == []
    assert concerns(TUNINGPROFILE, profile_body("another")) == []


async def test_one_that_is_being_deleted_is_left_to_the_garbage_collector(serving: World) -> None:
    serving.job(sha256=SECOND)
    metadata = serving.get(MODELDEPLOYMENT, NAME)["metadata"]
    serving.change(MODELDEPLOYMENT, NAME, metadata={**metadata, "deletionTimestamp": "2026-11-23T10:30:00Z"})
    before = len(serving.api.seen)
    assert await serving.reconcile() is None
    serving.delete(MODELDEPLOYMENT, NAME)
    assert await serving.reconcile() is None
    assert len(serving.api.seen) == before


async def test_what_a_deleted_one_of_the_same_name_left_is_waited_for(serving: World) -> None:
    serving.delete(MODELDEPLOYMENT, NAME)
    serving.put(MODELDEPLOYMENT, request(uid="the next one"))
    with pytest.raises(Conflict, match="of an earlier owner is being removed"):
        await serving.reconcile()


# What others do to what is ours, and a cache that lags


async def test_what_somebody_changes_is_set_right_and_what_somebody_deletes_is_made_again(serving: World) -> None:
    spec = serving.get(DEPLOYMENT, ENGINE)["spec"]
    serving.change(DEPLOYMENT, ENGINE, spec={**spec, "replicas": 7})
    serving.delete(SERVICE, NAME)
    serving.delete(CONFIG_MAP, ROUTER)
    await serving.reconcile()
    assert serving.get(DEPLOYMENT, ENGINE)["spec"] == spec
    assert serving.get(SERVICE, NAME)["spec"]["type"] == "ClusterIP"
    assert serving.led()["support"]["a"] == (OLD, 90)


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "overwritten"])
async def test_what_requests_are_led_to_stays_loaded_whatever_becomes_of_the_config_map(
    serving: World, deleted: bool
) -> None:
    serving.job(sha256=SECOND)
    await serving.reconcile()
    if deleted:
        serving.delete(CONFIG_MAP, ENGINE)
    else:
        serving.change(CONFIG_MAP, ENGINE, data={"adapters.json": "oops"})
    await serving.reconcile()
    assert (serving.wanted(), serving.led()["support"]["a"]) == ([OLD, NEW], (OLD, 90))


async def test_a_cache_that_does_not_know_yet_what_was_made_is_not_believed(serving: World) -> None:
    for kind in (CONFIG_MAP, SERVICE, DEPLOYMENT, DISRUPTION_BUDGET, NETWORK_POLICY):
        for obj in serving.all(kind):
            serving.cache.delete(kind, obj)
    before = serving.api.objects.copy()
    await serving.reconcile()
    kept = {path: obj for path, obj in before.items() if "/events/" not in path and "/modeldeployments/" not in path}
    assert {path: serving.api.objects[path] for path in kept} == kept


async def test_what_is_gone_without_the_cache_knowing_is_made_at_the_second_try(serving: World) -> None:
    serving.delete(DEPLOYMENT, ENGINE, seen=False)
    serving.steer(replicas=3)
    with pytest.raises(Conflict):
        await serving.reconcile()
    await serving.reconcile()
    assert serving.get(DEPLOYMENT, ENGINE)["spec"]["replicas"] == 3


async def test_a_spec_that_has_moved_on_is_not_overwritten_by_the_status_of_the_one_before(serving: World) -> None:
    held = serving.get(MODELDEPLOYMENT, NAME)
    metadata = {**held["metadata"], "generation": 7}
    serving.change(MODELDEPLOYMENT, NAME, seen=False, metadata=metadata, spec={**held["spec"], "replicas": 1})
    serving.job(sha256=SECOND)
    with pytest.raises(Conflict):
        await serving.reconcile()
    await serving.settle()
    assert (serving.status["observedGeneration"], serving.status["ready"]) == (7, "1/1")


async def test_a_pod_that_is_gone_without_the_cache_knowing_holds_up_nothing(serving: World) -> None:
    serving.delete(POD, Key("team-a", "assistant-router-1"), seen=False)
    del serving.agents.states[serving.address(names.ROUTER, 1)]
    serving.steer(replicas=1, adapters=[], routes=[])
    await serving.reconcile()
    assert serving.led() == {"assistant": {"base": (BASE, 1)}}
    serving.routers_lead(0)
    await serving.reconcile()
    assert serving.wanted() == [], "it was found to be gone when it was to be told"


async def test_a_router_that_is_going_holds_up_no_shift_but_keeps_what_it_may_lead_to(serving: World) -> None:
    """Its kubelet brings it no news any more."""
    pod = serving.get(POD, Key("team-a", "assistant-router-1"))
    going = {**pod["metadata"], "deletionTimestamp": "2026-11-23T10:30:00Z"}
    serving.put(POD, {**pod, "metadata": going})
    serving.job(sha256=SECOND)
    await serving.reconcile()
    serving.engines_load()
    await serving.reconcile()
    serving.routers_lead(0)
    await serving.reconcile()
    assert (serving.status["phase"], serving.led()["support"]["a"]) == ("Available", (NEW, 90))
    assert serving.wanted() == [OLD, NEW], "requests may be on their way through it"
    serving.delete(POD, Key("team-a", "assistant-router-1"))
    await serving.reconcile()
    assert serving.wanted() == [NEW]


# What is told


async def test_a_condition_keeps_its_time_while_it_holds(serving: World) -> None:
    since = serving.whole_condition("AdaptersReady")["lastTransitionTime"]
    serving.counts(ENGINE, 1, replicas=2)
    await serving.reconcile(seconds=600)
    assert serving.whole_condition("AdaptersReady")["lastTransitionTime"] == since
    assert serving.condition("Ready") == ("False", "Starting")
    assert serving.whole_condition("Ready")["lastTransitionTime"] > since


async def test_the_same_is_said_once(serving: World) -> None:
    said = serving.told()
    for available in (1, 2, 1, 2):
        serving.counts(ENGINE, available, replicas=2)
        await serving.reconcile()
    assert serving.told() == said
