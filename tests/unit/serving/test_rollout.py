"""Which revisions requests are led to, and which ones engines hold meanwhile."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from lorikeet_api.modeldeployment import ModelDeployment, RouteStatus
from lorikeet_api.serving import AdapterState, AgentState, RouterState, WantedAdapters
from lorikeet_operator.serving.plan import Target
from lorikeet_operator.serving.rollout import (
    EngineReplica,
    RouterReplica,
    Told,
    is_loaded,
    lead,
    to_hold,
    to_start_with,
)
from tests.resources import deployment

BASE = "base-12345678"
SQL: dict[str, Any] = {"name": "sql", "from": {"fineTuneJobRef": {"name": "sql-v1"}}}
DPO: dict[str, Any] = {"name": "dpo", "from": {"fineTuneJobRef": {"name": "dpo-v1"}}}
READ = "fedcba9876543210"
"""Fingerprint of what engines were told last."""
TOLD = Told(wanted=READ)
Led = dict[str, dict[str, tuple[str, int]]]
"""By model and variant: the served name, and the weight."""


def target(name: str, digit: str) -> Target:
    return Target(name, f"FineTuneJob {name}-v1", f"s3://adapters/{name}/{digit}", digit * 64)


OLD, NEW, NEWER = target("sql", "a"), target("sql", "b"), target("sql", "c")
OTHER = target("dpo", "d")


def replica(
    name: str,
    *loaded: Target,
    engine: bool = True,
    ready: bool = True,
    failed: Sequence[Target] = (),
    read: str = READ,
) -> EngineReplica:
    """Return a replica whose agent answers."""
    states: list[tuple[Target, Literal["loaded", "failed"]]] = [(each, "loaded") for each in loaded]
    states += [(each, "failed") for each in failed]
    adapters = [AdapterState(served=each.served, state=state) for each, state in states]
    return EngineReplica(name, ready, AgentState(wanted=read, engine=engine, draining=False, adapters=adapters))


def silent(name: str, *, ready: bool) -> EngineReplica:
    """Return a replica whose agent does not answer."""
    return EngineReplica(name, ready)


def loading(name: str, which: Target) -> EngineReplica:
    """Return a replica that has not loaded an adapter yet."""
    state = AdapterState(served=which.served, state="loading")
    return EngineReplica(name, True, AgentState(wanted=READ, engine=True, draining=False, adapters=[state]))


def leading_to(*served: str, **weights: int) -> dict[str, Any]:
    """Return the status of a deployment whose model `support` is led so: one variant for each name."""
    names = ("a", "b", "c")
    variants = [
        {"name": name, "servedName": each, "weight": weights.get(name, 1)}
        for name, each in zip(names, served, strict=False)
    ]
    return {"routes": [{"model": "support", "variants": variants}]}


def support(*variants: dict[str, Any], status: dict[str, Any] | None = None) -> ModelDeployment:
    """Return a deployment with one model of these variants."""
    return deployment(
        adapters=[SQL, DPO], routes=[{"model": "support", "variants": list(variants)}], status=status or {}
    )


def led(routes: Sequence[RouteStatus]) -> Led:
    return {route.model: {each.name: (each.served_name, each.weight) for each in route.variants} for route in routes}


A_SQL = {"name": "a", "adapter": "sql", "weight": 9}
B_DPO = {"name": "b", "adapter": "dpo", "weight": 1}
B_BASE = {"name": "b", "weight": 1}

EVERYWHERE: dict[str, list[EngineReplica]] = {
    "one replica has it": [replica("p0", NEW)],
    "both replicas have it": [replica("p0", OLD, NEW), replica("p1", NEW)],
    "the other's engine does not answer: it is starting": [
        replica("p0", NEW),
        replica("p1", engine=False, ready=False),
    ],
    "the other says nothing and is not ready: its node is dead": [replica("p0", NEW), silent("p1", ready=False)],
    "a surge pod waits for a GPU": [replica("p0", NEW), replica("p1", NEW), silent("p2", ready=False)],
    "a pod has it before it is ready": [replica("p0", NEW, ready=False)],
}
NOT_EVERYWHERE: dict[str, list[EngineReplica]] = {
    "there is no replica": [],
    "no engine answers": [replica("p0", NEW, engine=False)],
    "no agent answers": [silent("p0", ready=False)],
    "one of two has it": [replica("p0", OLD, NEW), replica("p1", OLD)],
    "one of two is loading it": [replica("p0", OLD, NEW), loading("p1", NEW)],
    "one of two cannot have it": [replica("p0", OLD, NEW), replica("p1", OLD, failed=[NEW])],
    "one that is ready is too busy to say": [replica("p0", NEW), replica("p1", engine=False)],
    "one may be about to unload it": [replica("p0", NEW), replica("p1", NEW, read="an older list")],
    "one that is ready does not say": [replica("p0", NEW), silent("p1", ready=True)],
    "a surge pod answers without it": [replica("p0", NEW), replica("p1", OLD, ready=False)],
    "they have another revision": [replica("p0", OLD), replica("p1", OLD)],
}


@pytest.mark.parametrize("replicas", EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_variant_is_led_to_its_new_revision_once_all_that_answer_have_it(replicas: list[EngineReplica]) -> None:
    assert is_loaded(NEW.served, replicas, READ)
    wanted = support(A_SQL, status=leading_to(OLD.served))
    assert led(lead(wanted, BASE, {"sql": NEW}, replicas, TOLD)) == {"support": {"a": (NEW.served, 9)}}


@pytest.mark.parametrize("replicas", NOT_EVERYWHERE.values(), ids=NOT_EVERYWHERE)
def test_a_variant_keeps_its_revision_until_the_new_one_is_loaded_everywhere(replicas: list[EngineReplica]) -> None:
    assert not is_loaded(NEW.served, replicas, READ)
    wanted = support(A_SQL, status=leading_to(OLD.served))
    assert led(lead(wanted, BASE, {"sql": NEW}, replicas, TOLD)) == {"support": {"a": (OLD.served, 9)}}


@pytest.mark.parametrize("replicas", NOT_EVERYWHERE.values(), ids=NOT_EVERYWHERE)
def test_a_variant_that_has_never_been_loaded_is_left_out_so_that_its_siblings_answer(
    replicas: list[EngineReplica],
) -> None:
    found = lead(support(A_SQL, B_BASE), BASE, {"sql": NEW}, replicas, TOLD)
    assert led(found) == {"support": {"b": (BASE, 1)}}


@pytest.mark.parametrize("replicas", NOT_EVERYWHERE.values(), ids=NOT_EVERYWHERE)
def test_a_variant_stays_where_it_is_though_a_replica_has_lost_its_revision(replicas: list[EngineReplica]) -> None:
    wanted = support(A_SQL, status=leading_to(NEW.served))
    assert led(lead(wanted, BASE, {"sql": NEW}, replicas, TOLD)) == {"support": {"a": (NEW.served, 9)}}


def test_each_variant_waits_for_its_own_revision_alone() -> None:
    wanted = support(A_SQL, B_DPO, status=leading_to(OLD.served, BASE))
    found = lead(wanted, BASE, {"sql": NEW, "dpo": OTHER}, [replica("p0", OLD, OTHER)], TOLD)
    assert led(found) == {"support": {"a": (OLD.served, 9), "b": (OTHER.served, 1)}}


def test_weights_change_at_once_also_of_a_variant_that_waits() -> None:
    wanted = support(A_SQL, B_BASE, status=leading_to(OLD.served, BASE, a=90, b=10))
    found = lead(wanted, BASE, {"sql": NEW}, [replica("p0", OLD)], TOLD)
    assert led(found) == {"support": {"a": (OLD.served, 9), "b": (BASE, 1)}}


def test_the_base_answers_without_any_wait() -> None:
    assert led(lead(support(B_BASE), BASE, {}, [], TOLD)) == {"support": {"b": (BASE, 1)}}
    was_an_adapter = support(B_BASE, status=leading_to(OLD.served))
    assert led(lead(was_an_adapter, BASE, {}, [], TOLD)) == {"support": {"b": (BASE, 1)}}


def test_a_variant_that_turns_from_the_base_to_an_adapter_waits_like_any_other() -> None:
    status = {"routes": [{"model": "support", "variants": [{"name": "a", "servedName": BASE, "weight": 1}]}]}
    wanted = support(A_SQL, status=status)
    assert led(lead(wanted, BASE, {"sql": NEW}, [loading("p0", NEW)], TOLD)) == {"support": {"a": (BASE, 9)}}
    assert led(lead(wanted, BASE, {"sql": NEW}, [replica("p0", NEW)], TOLD)) == {"support": {"a": (NEW.served, 9)}}


def test_a_variant_whose_adapter_is_unknown_keeps_what_it_had() -> None:
    wanted = support(A_SQL, B_DPO, status=leading_to(OLD.served))
    assert led(lead(wanted, BASE, {}, [replica("p0", OLD)], TOLD)) == {"support": {"a": (OLD.served, 9)}}


def test_who_goes_back_before_the_new_revision_was_loaded_has_never_left_the_old_one() -> None:
    wanted = support(A_SQL, status=leading_to(OLD.served))
    nobody_has_it = [replica("p0"), replica("p1")]
    assert led(lead(wanted, BASE, {"sql": OLD}, nobody_has_it, TOLD)) == {"support": {"a": (OLD.served, 9)}}


@pytest.mark.parametrize("replicas", NOT_EVERYWHERE.values(), ids=NOT_EVERYWHERE)
@pytest.mark.parametrize("now", [OLD, NEW], ids=["of the revision that is served", "of another one"])
def test_a_variant_or_model_under_a_new_name_begins_with_the_revision_of_its_adapter(
    replicas: list[EngineReplica], now: Target
) -> None:
    status = leading_to(OLD.served)
    status["routes"][0]["variants"][0]["adapter"] = "sql"
    renamed = {"model": "help", "variants": [{**A_SQL, "name": "x"}]}
    wanted = deployment(adapters=[SQL], routes=[renamed], status=status)
    assert led(lead(wanted, BASE, {"sql": now}, replicas, TOLD)) == {"help": {"x": (OLD.served, 9)}}


def test_models_and_variants_that_the_spec_no_longer_names_are_led_nowhere() -> None:
    status = leading_to(OLD.served, OTHER.served)
    status["routes"] += [{"model": "gone", "variants": [{"name": "a", "servedName": OLD.served, "weight": 1}]}]
    found = lead(support(A_SQL, status=status), BASE, {"sql": OLD}, [replica("p0", OLD)], TOLD)
    assert led(found) == {"support": {"a": (OLD.served, 9)}}


def test_without_routes_the_base_answers_for_the_resource_and_each_adapter_for_itself() -> None:
    found = lead(deployment("assistant", adapters=[SQL]), BASE, {"sql": NEW}, [replica("p0", NEW)], TOLD)
    assert led(found) == {"assistant": {"base": (BASE, 1)}, "sql": {"sql": (NEW.served, 1)}}


def test_where_the_status_was_lost_what_all_replicas_have_is_led_to_at_once() -> None:
    found = lead(support(A_SQL, B_BASE), BASE, {"sql": OLD}, [replica("p0", OLD), replica("p1", OLD)], TOLD)
    assert led(found) == {"support": {"a": (OLD.served, 9), "b": (BASE, 1)}}


ROUTED = "0123456789abcdef"


def router(name: str, *serves: str, routed: str = ROUTED) -> RouterReplica:
    """Return a router whose agent answers."""
    return RouterReplica(name, True, RouterState(wanted=routed, routed=routed, served=list(serves)))


def held(
    led_to: Sequence[str],
    wanted: Sequence[Target],
    so_far: Sequence[Target],
    routers: Sequence[RouterReplica],
    told_routers: str = ROUTED,
    status: dict[str, Any] | None = None,
) -> list[str]:
    """Return the served names that engines are to hold."""
    routes = [RouteStatus.model_validate(each) for each in leading_to(*led_to)["routes"]]
    told = Told([each.revision for each in so_far], READ, told_routers)
    found = to_hold(deployment(status=status), routes, {each.name: each for each in wanted}, told, routers, ROUTED)
    return [each.served for each in found.adapters]


def test_what_is_wanted_is_held_though_nobody_is_led_to_it_yet() -> None:
    assert held([BASE], [NEW, OTHER], [], [router("r0", BASE)]) == [OTHER.served, NEW.served]


def test_what_is_led_to_is_held_though_it_is_no_longer_wanted() -> None:
    assert held([OLD.served], [NEW], [OLD], [router("r0", OLD.served)]) == [OLD.served, NEW.served]
    assert held([OLD.served], [], [OLD], [router("r0", OLD.served)]) == [OLD.served]


LEADING: dict[str, list[RouterReplica]] = {
    "one is led by older routes": [router("r0", NEW.served), router("r1", NEW.served, routed="f" * 16)],
    "one does not answer": [router("r0", NEW.served), RouterReplica("r1", True)],
    "one that stops does not answer": [router("r0", NEW.served), RouterReplica("r1", False)],
    "one still has requests on their way to it": [router("r0", NEW.served), router("r1", OLD.served, NEW.served)],
    "one has read nothing yet": [router("r0", NEW.served), router("r1", routed="")],
}


@pytest.mark.parametrize("routers", LEADING.values(), ids=LEADING)
def test_an_old_revision_is_held_while_a_router_may_have_a_request_for_it(routers: list[RouterReplica]) -> None:
    assert held([NEW.served], [NEW], [OLD, NEW], routers) == [OLD.served, NEW.served]


def test_what_routers_may_be_about_to_lead_to_is_held_though_all_have_led_away_from_it() -> None:
    settled = [router("r0", OLD.served)]
    assert held([OLD.served], [OLD], [OLD, NEW], settled, told_routers="f" * 16) == [OLD.served, NEW.served]
    assert held([OLD.served], [OLD], [OLD, NEW], settled) == [OLD.served]


def test_what_status_says_that_requests_are_led_to_is_held_until_it_says_otherwise() -> None:
    """It is written last: an operator that begins anew goes on from there."""
    settled = [router("r0", NEW.served)]
    assert held([NEW.served], [NEW], [OLD, NEW], settled, status=leading_to(OLD.served)) == [OLD.served, NEW.served]


def test_an_old_revision_is_let_go_once_every_router_has() -> None:
    routers = [router("r0", NEW.served), router("r1", NEW.served)]
    assert held([NEW.served], [NEW], [OLD, NEW], routers) == [NEW.served]


def test_without_routers_no_request_is_on_its_way() -> None:
    assert held([NEW.served], [NEW], [OLD, NEW], []) == [NEW.served]


def test_a_removed_adapter_is_held_until_every_router_has_let_it_go() -> None:
    assert held([BASE], [], [OLD], [router("r0", OLD.served, BASE)]) == [OLD.served]
    assert held([BASE], [], [OLD], [router("r0", BASE)]) == []


def test_a_spec_that_changes_three_times_leaves_nothing_behind_once_all_is_quiet() -> None:
    behind = [router("r0", OLD.served, NEW.served, routed="f" * 16)]
    assert held([OLD.served], [NEWER], [OLD, NEW], behind) == [OLD.served, NEW.served, NEWER.served]
    assert held([NEWER.served], [NEWER], [OLD, NEW, NEWER], [router("r0", NEWER.served)]) == [NEWER.served]


def test_engines_are_told_which_of_their_adapters_are_in_service() -> None:
    wanted = support(A_SQL, B_BASE, status=leading_to(OLD.served, BASE))
    targets = {"sql": NEW, "dpo": OTHER}
    found = lead(wanted, BASE, targets, [replica("p0", OLD)], TOLD)
    told = to_hold(wanted, found, targets, Told([OLD.revision]), [], "")
    assert [each.served for each in told.adapters] == sorted([OLD.served, NEW.served, OTHER.served])
    assert told.led == [OLD.served]
    assert to_start_with(told, Told([NEW.revision, OTHER.revision, OLD.revision])).led == [OLD.served]


def test_names_that_are_no_adapters_are_not_held() -> None:
    assert held([BASE], [], [], [router("r0", BASE, "unheard-of")]) == []


def test_the_order_of_what_is_found_does_not_matter() -> None:
    forth = held([BASE], [OTHER, NEW], [OLD, NEW], [RouterReplica("r0", True)])
    assert forth == held([BASE], [NEW, OTHER], [NEW, OLD], [RouterReplica("r0", True)])
    assert forth == sorted(forth)


def started(needed: Sequence[Target], so_far: Sequence[Target]) -> list[str]:
    """Return what engines are to hold that are started with their adapters."""
    wanted = WantedAdapters(adapters=[each.revision for each in needed])
    return [each.served for each in to_start_with(wanted, Told([each.revision for each in so_far])).adapters]


def test_no_pod_is_replaced_just_to_forget_an_adapter() -> None:
    assert started([NEW], [OLD, NEW]) == [OLD.served, NEW.served]


def test_what_is_superseded_goes_with_the_pods_that_are_replaced_anyway() -> None:
    assert started([NEW, NEWER], [OLD, NEW]) == [NEW.served, NEWER.served]
    assert started([], [OLD]) == []
