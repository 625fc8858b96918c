"""What is told of a ModelDeployment: phase, conditions, counts and history."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from lorikeet_api.modeldeployment import (
    MAX_ADAPTERS,
    DeploymentCondition,
    ModelDeployment,
    ModelDeploymentStatus,
    RouteStatus,
)
from lorikeet_api.serving import AdapterReason, AdapterState, AgentState, RouterState
from lorikeet_operator.finding import Finding
from lorikeet_operator.serving.facts import Facts
from lorikeet_operator.serving.plan import Plan, Target
from lorikeet_operator.serving.rollout import EngineReplica, RouterReplica, lead
from lorikeet_operator.serving.status import WAITING, refused, told
from tests.resources import deployment
from tests.unit.serving.test_rollout import (
    BASE,
    DPO,
    NEW,
    NEWER,
    OLD,
    OTHER,
    SQL,
    TOLD,
    loading,
    replica,
    silent,
    target,
)

NOW, LATER = "2026-11-23T10:00:00Z", "2026-11-23T11:00:00Z"
URL = "http://assistant.team-a.svc/v1"
VARIANT = {"name": "sql", "adapter": "sql", "weight": 1}
NO_IMAGE = Finding(True, "ImagePullFailed", "the image of container engine of pod p0 cannot be pulled: correct it")


def planned(*targets: Target, **absent: Finding) -> Plan:
    return Plan({each.name: each for each in targets}, absent, [])


def well(deployment: ModelDeployment, *targets: Target, **changes: Any) -> Facts:
    """Return the facts of a deployment that serves all that it is asked for, but for `changes`."""
    count = deployment.spec.replicas
    replicas = [replica(f"p{number}", *targets) for number in range(count)]
    facts = Facts(
        plan=planned(*targets),
        routes=lead(deployment, BASE, {each.name: each for each in targets}, replicas, TOLD),
        replicas=replicas,
        available=count,
        current=True,
        total=count,
        routers_available=deployment.spec.router.replicas,
        settled=True,
        selector="a=b",
        url=URL,
        pin="1" * 64,
    )
    return replace(facts, **changes)


def condition(status: ModelDeploymentStatus, kind: str) -> DeploymentCondition:
    (found,) = [each for each in status.conditions if each.type == kind]
    return found


def story(status: ModelDeploymentStatus) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status, each.reason) for each in status.conditions}


def after(asks: ModelDeployment, status: ModelDeploymentStatus) -> ModelDeployment:
    """Return the deployment as the API server has it once its status was written."""
    return ModelDeployment.parse({**asks.to_wire(), "status": status.to_wire()})


def failing(reason: AdapterReason, which: Target = NEW) -> EngineReplica:
    state = AdapterState(served=which.served, state="failed", reason=reason, message="the cause: the next step")
    return EngineReplica("p0", True, AgentState(wanted="w", engine=True, draining=False, adapters=[state]))


def test_one_that_serves_all_is_available() -> None:
    asks = deployment(adapters=[SQL, DPO], replicas=2)
    status = told(asks, well(asks, NEW, OTHER), NOW)
    assert status.phase == "Available"
    assert status.message == f"serves at {URL}"
    assert story(status) == {
        "Ready": ("True", "Serving"),
        "AdaptersReady": ("True", "Loaded"),
        "RouterReady": ("True", "Routing"),
        "Degraded": ("False", "AsExpected"),
    }
    assert (status.ready, status.adapters_ready, status.replicas, status.selector) == ("2/2", "2/2", 2, "a=b")
    assert (status.url, status.model_pin, status.observed_generation) == (URL, "1" * 64, 1)
    assert [(each.name, each.served_name, each.ready_replicas) for each in status.adapters] == [
        ("sql", NEW.served, 2),
        ("dpo", OTHER.served, 2),
    ]


def test_the_conditions_have_one_order() -> None:
    asks = deployment()
    assert [each.type for each in told(asks, well(asks), NOW).conditions] == [
        "Ready",
        "AdaptersReady",
        "RouterReady",
        "Degraded",
    ]


def test_one_that_is_told_the_same_again_says_the_same() -> None:
    asks = deployment(adapters=[SQL])
    status = told(asks, well(asks, NEW), NOW)
    again = after(asks, status)
    assert told(again, well(again, NEW), LATER) == status


def test_a_conditions_time_moves_only_when_it_flips() -> None:
    asks = deployment()
    starting = after(asks, told(asks, well(asks, available=0), NOW))
    still = told(starting, well(asks, available=0, current=False), LATER)
    assert condition(still, "Ready").last_transition_time == NOW
    ready = told(starting, well(asks), LATER)
    assert condition(ready, "Ready").last_transition_time == LATER
    assert condition(ready, "RouterReady").last_transition_time == NOW


STARTING: dict[str, tuple[dict[str, Any], str, str]] = {
    "no engine is available": ({"available": 0}, "Starting", "0 of 2 replicas are available"),
    "one is": ({"available": 1}, "Starting", "1 of 2 replicas are available"),
    "old ones are being replaced": (
        {"current": False},
        "Starting",
        "2 of 2 replicas are available; others are being replaced",
    ),
    "no router is available": ({"routers_available": 0}, "Starting", "0 of 2 routers are available"),
    "routers have not taken over yet": ({"settled": False}, "Shifting", "routers take over the newest routes"),
    "an adapter is being loaded": (
        {"replicas": [replica("p0", NEW), loading("p1", NEW)]},
        "Loading",
        f"adapter sql: revision {NEW.served} is being loaded on pod p1",
    ),
    "a replica has not heard of it": (
        {"replicas": [replica("p0", NEW), replica("p1")]},
        "Loading",
        f"adapter sql: revision {NEW.served} is being loaded on pod p1",
    ),
    "no engine answers": (
        {"replicas": [silent("p0", ready=True), replica("p1", engine=False)]},
        "Starting",
        "adapters are loaded once an engine answers",
    ),
    "a job is not finished": (
        {"plan": planned(dpo=Finding(False, "JobNotFinished", "FineTuneJob dpo-v1 is Running"))},
        "JobNotFinished",
        "adapter dpo: FineTuneJob dpo-v1 is Running",
    ),
    "a URI is being looked up": (
        {"plan": planned(dpo=Finding(False, "Resolving", "s3://adapters/dpo is being looked up"))},
        "Resolving",
        "adapter dpo: s3://adapters/dpo is being looked up",
    ),
}


@pytest.mark.parametrize("routes", [[], [RouteStatus(model="sql")]], ids=["none is led", "it is left out"])
def test_it_is_not_ready_while_a_variant_waits_for_its_revision(routes: list[RouteStatus]) -> None:
    asks = deployment(adapters=[SQL])
    status = told(asks, well(asks, NEW, routes=routes), NOW)
    waits = f"variant sql of model sql waits until every replica has {NEW.served}"
    assert (status.phase, status.message, story(status)["RouterReady"]) == ("Progressing", waits, ("False", "Shifting"))
    old = [RouteStatus.model_validate({"model": "sql", "variants": [VARIANT | {"servedName": OLD.served}]})]
    assert told(asks, well(asks, NEW, routes=old), NOW).message == waits


@pytest.mark.parametrize("what", STARTING)
def test_what_passes_by_itself_is_progress_and_is_told(what: str) -> None:
    changes, reason, message = STARTING[what]
    asks = deployment(adapters=[SQL, DPO], replicas=2)
    status = told(asks, well(asks, NEW, **changes), NOW)
    assert (status.phase, status.message) == ("Progressing", message)
    assert story(status)["Ready"] == ("False", reason)
    assert story(status)["Degraded"] == ("False", "AsExpected")
    assert reason in WAITING


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a pod has no image": ({"troubles": [NO_IMAGE], "available": 1}, "ImagePullFailed", "cannot be pulled"),
    "a job is not there": (
        {"plan": planned(sql=Finding(True, "JobNotFound", "there is no FineTuneJob sql-v1"))},
        "JobNotFound",
        "adapter sql: there is no FineTuneJob sql-v1",
    ),
    "an adapter cannot be loaded": (
        {"replicas": [failing("RankTooHigh")]},
        "RankTooHigh",
        "adapter sql on pod p0: the cause: the next step",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_somebody_has_to_do_something_about_is_degraded_while_others_answer(what: str) -> None:
    changes, reason, message = WRONG[what]
    asks = deployment(adapters=[SQL], replicas=2)
    status = told(asks, well(asks, NEW, **changes), NOW)
    assert status.phase == "Degraded"
    assert message in status.message
    assert story(status)["Degraded"] == ("True", reason)
    assert story(status)["Ready"] == ("False", reason)


@pytest.mark.parametrize("what", WRONG)
def test_and_failed_where_nobody_answers(what: str) -> None:
    changes, _, message = WRONG[what]
    asks = deployment(adapters=[SQL], replicas=2)
    status = told(asks, well(asks, NEW, **{**changes, "available": 0}), NOW)
    assert (status.phase, story(status)["Degraded"][0]) == ("Failed", "False")
    assert message in status.message


@pytest.mark.parametrize("reason", ["Unschedulable", "PodRefused"])
def test_but_under_way_where_the_cluster_may_yet_make_room(reason: str) -> None:
    asks = deployment(adapters=[SQL], replicas=2)
    no_room = Finding(True, reason, "no node takes pod p0: 0/1 nodes are available")
    status = told(asks, well(asks, NEW, available=0, troubles=[no_room]), NOW)
    assert (status.phase, story(status)["Ready"]) == ("Progressing", ("False", reason))
    assert "no node takes pod p0" in status.message


def test_routers_that_are_being_replaced_are_not_ready() -> None:
    asks = deployment()
    status = told(asks, well(asks, routers_current=False), NOW)
    assert (status.phase, story(status)["Ready"]) == ("Progressing", ("False", "Starting"))
    assert "routers are being replaced" in status.message


def test_a_configuration_that_an_envoy_refuses_is_told() -> None:
    asks = deployment()
    routers = [RouterReplica("r0", True, RouterState(wanted="b", routed="a", refused=True))]
    status = told(asks, well(asks, routers=routers, settled=False), NOW)
    assert (status.phase, story(status)["RouterReady"]) == ("Degraded", ("False", "ConfigurationRefused"))
    assert "the Envoy of pod r0 refuses" in status.message


def test_a_ready_pod_that_the_operator_cannot_reach_is_told_once_it_is_not_just_busy() -> None:
    asks = deployment(adapters=[SQL])
    engine, router = EngineReplica("p0", True, None, silent=75.0), RouterReplica("r0", True, None, silent=75.0)
    served = well(asks, NEW)
    engine_unheard = replace(served, replicas=[engine])
    router_unheard = replace(served, routers=[router], settled=False)
    for facts, kind in ((engine_unheard, "AdaptersReady"), (router_unheard, "RouterReady")):
        status = told(asks, facts, NOW)
        assert (status.phase, condition(status, kind).reason) == ("Degraded", "AgentUnreachable")
        assert "port 9000" in status.message
    for each in (replace(engine, silent=74.0), silent("p0", ready=False)):
        assert condition(told(asks, well(asks, NEW, replicas=[each]), NOW), "Degraded").status == "False"


def test_trouble_of_a_router_is_told_though_all_engines_answer() -> None:
    asks = deployment()
    status = told(asks, well(asks, routers_available=1, troubles=[NO_IMAGE]), NOW)
    assert (status.phase, story(status)["Degraded"]) == ("Degraded", ("True", "ImagePullFailed"))


def test_what_somebody_has_to_do_something_about_is_told_before_what_passes() -> None:
    waits = Finding(False, "JobNotFinished", "FineTuneJob sql-v1 is Running")
    wrong = Finding(True, "JobFailed", "FineTuneJob dpo-v1 has published nothing: name another one")
    asks = deployment(adapters=[SQL, DPO])
    status = told(asks, well(asks, plan=planned(sql=waits, dpo=wrong)), NOW)
    assert condition(status, "AdaptersReady").reason == "JobFailed"
    both = [loading("p0", NEW), failing("FileCorrupt")]
    assert condition(told(asks, well(asks, NEW, replicas=both), NOW), "AdaptersReady").reason == "FileCorrupt"


def test_a_replica_that_does_not_answer_counts_as_one_that_has_nothing() -> None:
    asks = deployment(adapters=[SQL], replicas=2)
    status = told(asks, well(asks, NEW, replicas=[replica("p0", NEW), silent("p1", ready=False)]), NOW)
    assert (status.adapters_ready, status.adapters[0].ready_replicas) == ("0/1", 1)


def test_more_replicas_than_are_wanted_are_none_that_are_missing() -> None:
    asks = deployment(replicas=2)
    assert told(asks, well(asks, available=3, total=3), NOW).ready == "2/2"


@pytest.mark.parametrize(
    ("holds", "phase"), [(True, "Failed"), (False, "Pending")], ids=["somebody has to act", "it passes"]
)
def test_a_request_that_cannot_be_served_is_told_why(holds: bool, phase: str) -> None:
    status = refused(deployment(), Finding(holds, "ProfileNotFound", "there is no TuningProfile: create it"), NOW)
    assert (status.phase, status.message) == (phase, "there is no TuningProfile: create it")
    assert story(status) == {"Ready": ("False", "ProfileNotFound"), "Degraded": ("False", "ProfileNotFound")}


def test_what_serves_already_goes_on_though_its_spec_is_refused() -> None:
    asks = deployment(adapters=[SQL])
    serving = after(asks, told(asks, well(asks, NEW), NOW))
    status = refused(serving, Finding(True, "ProfileNotFound", "there is no TuningProfile: create it"), LATER)
    assert (status.phase, story(status)["Degraded"]) == ("Degraded", ("True", "ProfileNotFound"))
    assert status.routes == serving.status.routes
    assert status.adapters == serving.status.adapters
    assert status.url == URL


def test_it_serves_on_however_often_its_spec_is_refused() -> None:
    missing = Finding(True, "ProfileNotFound", "there is no TuningProfile: create it")
    asks = deployment(adapters=[SQL])
    serving = after(asks, told(asks, well(asks, NEW), NOW))
    refused_once = after(serving, refused(serving, missing, LATER))
    assert refused(refused_once, missing, LATER).phase == "Degraded"
    wrong = after(asks, told(asks, well(asks, NEW, troubles=[NO_IMAGE]), NOW))
    assert refused(wrong, missing, LATER).phase == "Degraded"


def history(*targets: Target, limit: int = 5) -> list[tuple[str, str]]:
    """Return the history once requests have been led to one target after the other."""
    asks = deployment(adapters=[SQL, DPO], revisionHistoryLimit=limit)
    for each in targets:
        asks = after(asks, told(asks, well(asks, each), NOW))
    return [(each.adapter, each.revision) for each in asks.status.history]


def test_history_has_each_revision_that_requests_were_led_to() -> None:
    assert history(OLD, OLD, NEW, NEW) == [("sql", "a" * 8), ("sql", "b" * 8)]
    assert history(OLD, NEW, OLD) == [("sql", "a" * 8), ("sql", "b" * 8), ("sql", "a" * 8)]


def test_what_has_not_been_led_to_yet_is_no_history() -> None:
    asks = deployment(adapters=[SQL])
    assert not told(asks, well(asks, NEW, routes=[RouteStatus(model="sql")]), NOW).history


def test_history_has_what_brings_a_revision_back() -> None:
    asks = deployment(adapters=[SQL])
    (entry,) = told(asks, well(asks, NEW), NOW).history
    assert (entry.time, entry.uri, entry.sha256, entry.reason) == (NOW, NEW.uri, NEW.sha256, "FineTuneJob sql-v1")


def test_of_each_adapter_so_many_earlier_revisions_are_remembered() -> None:
    assert history(OLD, OTHER, NEW, NEWER, limit=1) == [("dpo", "d" * 8), ("sql", "b" * 8), ("sql", "c" * 8)]
    assert history(OLD, NEW, limit=0) == [("sql", "b" * 8)]


def test_a_revision_is_remembered_while_requests_are_led_to_it_though_its_adapter_is_named_no_longer() -> None:
    asks = deployment(adapters=[SQL])
    before = well(asks, OLD)
    now = after(deployment(adapters=[DPO]), told(asks, before, NOW))
    still = told(now, well(now, OTHER, routes=before.routes), NOW)
    assert [(each.adapter, each.revision) for each in still.history] == [("sql", "a" * 8)]


def test_an_adapter_that_is_named_no_longer_has_no_history() -> None:
    asks = deployment(adapters=[SQL])
    before = told(asks, well(asks, NEW), NOW)
    now = deployment(adapters=[DPO], status=before.to_wire())
    assert [each.adapter for each in told(now, well(now, OTHER), LATER).history] == ["dpo"]


def test_one_that_is_scaled_to_nothing_does_not_say_that_it_serves() -> None:
    asks = deployment(replicas=0)
    assert story(told(asks, well(asks), NOW))["Ready"] == ("False", "ScaledToZero")


def test_the_api_server_takes_what_is_told_of_as_many_adapters_as_there_may_be() -> None:
    names = [f"adapter-{number}" for number in range(MAX_ADAPTERS)]
    asks = deployment(adapters=[{**SQL, "name": name} for name in names])
    status = told(asks, well(asks, *(target(name, "a") for name in names)), NOW)
    assert len(ModelDeploymentStatus.model_validate(status.to_wire()).routes) == MAX_ADAPTERS + 1


@pytest.mark.parametrize("length", [0, 5000])
def test_the_api_server_takes_what_is_told(length: int) -> None:
    asks = deployment(adapters=[SQL])
    trouble = Finding(True, "EngineFailed", "x" * length)
    facts: Sequence[Facts] = [well(asks, NEW), well(asks, NEW, troubles=[trouble]), well(asks, target("sql", "e"))]
    for each in facts:
        ModelDeploymentStatus.model_validate(told(asks, each, NOW).to_wire())
