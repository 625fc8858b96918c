import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet_operator.kube.cache import Cache, by_label
from lorikeet_operator.kube.kinds import POD, Key, Kind, Object, uid_of, version_of
from tests.unit.kube.clock import FakeClock
from tests.unit.kube.objects import CONFIG_MAP, config_map

A = Key("ns", "a")


@pytest.fixture
def cache(clock: FakeClock) -> Cache:
    cache = Cache(clock.now)
    cache.register(CONFIG_MAP, by_label("owner"))
    return cache


def held(cache: Cache, key: Key = A) -> tuple[str, int] | None:
    obj = cache.get(CONFIG_MAP, key)
    return None if obj is None else (uid_of(obj), version_of(obj))


def test_the_newest_version_wins_whatever_the_order(cache: Cache) -> None:
    assert cache.put(CONFIG_MAP, config_map(version=9))
    assert not cache.put(CONFIG_MAP, config_map(version=5))
    assert not cache.put(CONFIG_MAP, config_map(version=9))
    assert cache.put(CONFIG_MAP, config_map(version=10))  # as numbers: "10" < "9" as text
    assert held(cache) == ("uid-a", 10)


def test_a_late_answer_to_a_write_does_not_bring_back_what_was_deleted(cache: Cache) -> None:
    cache.put(CONFIG_MAP, config_map(version=5))
    cache.delete(CONFIG_MAP, config_map(version=8))
    assert not cache.put(CONFIG_MAP, config_map(version=7))
    assert held(cache) is None


def test_a_deletion_that_comes_before_the_object_counts_too(cache: Cache) -> None:
    cache.delete(CONFIG_MAP, config_map(version=8))
    assert not cache.put(CONFIG_MAP, config_map(version=6))


def test_an_object_made_anew_under_the_name_is_let_in(cache: Cache) -> None:
    cache.put(CONFIG_MAP, config_map(version=5))
    cache.delete(CONFIG_MAP, config_map(version=8))
    assert cache.put(CONFIG_MAP, config_map(version=9, uid="second"))
    assert held(cache) == ("second", 9)


def test_an_object_whose_label_came_back_is_let_in(cache: Cache) -> None:
    cache.delete(CONFIG_MAP, config_map(version=8))  # out of the selector: a watch says DELETED
    assert cache.put(CONFIG_MAP, config_map(version=9))


def test_a_late_deletion_of_the_former_object_leaves_the_new_one(cache: Cache) -> None:
    cache.put(CONFIG_MAP, config_map(version=5))
    cache.put(CONFIG_MAP, config_map(version=9, uid="second"))
    assert not cache.delete(CONFIG_MAP, config_map(version=8))
    assert not cache.put(CONFIG_MAP, config_map(version=8))
    assert held(cache) == ("second", 9)


def test_an_object_whose_name_another_one_has_taken_is_told_as_gone(cache: Cache) -> None:
    heard: list[str] = []
    cache.put(CONFIG_MAP, config_map(version=5, uid="first"))
    cache.subscribe(lambda kind, obj: heard.append(obj["metadata"]["uid"]))
    cache.put(CONFIG_MAP, config_map(version=9, uid="second"))
    assert heard == ["first", "second"]


def test_tombstones_do_not_pile_up(cache: Cache, clock: FakeClock) -> None:
    for number in range(100):
        cache.delete(CONFIG_MAP, config_map(f"x{number}", version=number))
    clock.advance(901)
    cache.delete(CONFIG_MAP, config_map("last", version=500))
    assert list(cache._stores[CONFIG_MAP].tombstones) == ["uid-last"]


def test_a_list_finds_ghosts_and_what_a_watch_has_missed(cache: Cache) -> None:
    for name, version in (("ghost", 3), ("stale", 4), ("same", 5), ("younger", 21)):
        cache.put(CONFIG_MAP, config_map(name, version=version))
    listed = [config_map("stale", version=11), config_map("same", version=5), config_map("missed", version=12)]
    assert cache.replace(CONFIG_MAP, listed, version=20) == 3
    assert {obj["metadata"]["name"]: version_of(obj) for obj in cache.all(CONFIG_MAP)} == {
        "stale": 11,
        "same": 5,
        "missed": 12,
        "younger": 21,  # made after the list
    }
    assert not cache.put(CONFIG_MAP, config_map("ghost", version=19)), "a ghost has a tombstone of the list's version"


def test_a_list_of_one_namespace_leaves_the_others(cache: Cache) -> None:
    cache.put(CONFIG_MAP, config_map("a", version=1, uid="1", namespace="one"))
    cache.put(CONFIG_MAP, config_map("a", version=2, uid="2", namespace="two"))
    cache.replace(CONFIG_MAP, [], version=9, namespace="one")
    assert [obj["metadata"]["namespace"] for obj in cache.all(CONFIG_MAP)] == ["two"]


def test_the_index_follows_changes(cache: Cache) -> None:
    cache.put(CONFIG_MAP, config_map("b", version=1, owner="x"))
    cache.put(CONFIG_MAP, config_map("a", version=2, owner="x"))
    cache.put(CONFIG_MAP, config_map("c", version=3, owner="x", namespace="elsewhere"))
    assert [obj["metadata"]["name"] for obj in cache.indexed(CONFIG_MAP, "ns", "x")] == ["a", "b"]
    cache.put(CONFIG_MAP, config_map("a", version=4, owner="y"))
    cache.delete(CONFIG_MAP, config_map("b", version=5))
    assert cache.indexed(CONFIG_MAP, "ns", "x") == []
    assert [obj["metadata"]["name"] for obj in cache.indexed(CONFIG_MAP, "ns", "y")] == ["a"]
    assert ("ns", "x") not in cache._stores[CONFIG_MAP].indexed, "an empty entry would stay for ever"


def test_listeners_hear_of_each_change_once_after_it(cache: Cache) -> None:
    heard: list[tuple[int, Any]] = []
    cache.subscribe(lambda kind, obj: heard.append((version_of(obj), held(cache))))
    cache.put(CONFIG_MAP, config_map(version=5))
    cache.put(CONFIG_MAP, config_map(version=5))
    cache.put(CONFIG_MAP, config_map(version=4))
    cache.delete(CONFIG_MAP, config_map(version=6))
    cache.delete(CONFIG_MAP, config_map(version=6))
    assert heard == [(5, ("uid-a", 5)), (5, None)]


def test_managed_fields_are_not_kept_and_the_given_object_is_not_touched(cache: Cache) -> None:
    obj = config_map(version=1)
    obj["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    cache.put(CONFIG_MAP, obj)
    cached = cache.get(CONFIG_MAP, A)
    assert cached is not None
    assert "managedFields" not in cached["metadata"]
    assert "managedFields" in obj["metadata"]


async def test_synced_only_once_every_kind_was_listed(cache: Cache, clock: FakeClock) -> None:
    cache.register(POD)
    waiting = asyncio.create_task(cache.wait_synced())
    cache.put(POD, config_map(version=1))
    assert not cache.synced(POD)
    cache.mark_listed(CONFIG_MAP)
    await asyncio.sleep(0)
    assert (cache.synced(CONFIG_MAP), cache.synced(POD), waiting.done()) == (True, False, False)
    cache.mark_listed(POD)
    await asyncio.wait_for(waiting, 5)


def test_ages(cache: Cache, clock: FakeClock) -> None:
    clock.advance(10)
    assert (cache.relist_age(CONFIG_MAP), cache.watch_age(CONFIG_MAP)) == (10, 10)
    cache.mark_listed(CONFIG_MAP)
    clock.advance(3)
    cache.mark_seen(CONFIG_MAP)
    clock.advance(2)
    assert (cache.relist_age(CONFIG_MAP), cache.watch_age(CONFIG_MAP)) == (5, 2)


@given(st.data())
def test_events_in_any_order_and_any_number_end_in_the_truth(data: st.DataObject) -> None:
    """A history of one name: made, changed, deleted, made again; told in any order, parts twice."""
    history: list[tuple[str, Object]] = []
    alive: Object | None = None
    version = 0
    for generation in range(data.draw(st.integers(1, 3), "lives")):
        for _ in range(data.draw(st.integers(1, 3), "changes")):
            version += 1
            alive = config_map(version=version, uid=f"life-{generation}")
            history.append(("put", alive))
        if data.draw(st.booleans(), "deleted") and alive is not None:
            version += 1
            history.append(("delete", config_map(version=version, uid=f"life-{generation}")))
            alive = None
        else:
            break
    told = data.draw(st.permutations(history + data.draw(st.lists(st.sampled_from(history), max_size=3))), "order")
    cache = Cache()
    cache.register(CONFIG_MAP)
    for what, obj in told:
        getattr(cache, what)(CONFIG_MAP, obj)
    assert held(cache) == (None if alive is None else (uid_of(alive), version_of(alive)))


def test_paths() -> None:
    job = Kind("batch", "v1", "jobs", "Job")
    cluster_wide = Kind("x.dev", "v1", "things", "Thing", namespaced=False)
    assert CONFIG_MAP.path("ns", "a") == "/api/v1/namespaces/ns/configmaps/a"
    assert job.path() == "/apis/batch/v1/jobs"
    assert job.path("ns", "a", "status") == "/apis/batch/v1/namespaces/ns/jobs/a/status"
    assert cluster_wide.path("ignored", "a") == "/apis/x.dev/v1/things/a"
    assert (job.resource, CONFIG_MAP.resource, job.api_version) == ("jobs.batch", "configmaps", "batch/v1")
