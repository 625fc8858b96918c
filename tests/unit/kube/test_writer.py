from typing import Any

import pytest

from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import Conflict, HeldByOther, NotFound
from lorikeet_operator.kube.kinds import Key, uid_of
from lorikeet_operator.kube.writer import Writer, contains
from tests.unit.kube.api import THING, Api
from tests.unit.kube.objects import CONFIG_MAP, config_map

A = Key("ns", "a")


@pytest.fixture
def cache() -> Cache:
    cache = Cache()
    cache.register(THING)
    return cache


@pytest.fixture
def writer(client: Client, cache: Cache) -> Writer:
    return Writer(client, cache)


def child(owner: str = "owner", **more: Any) -> dict[str, Any]:
    body = config_map(version=0, owner=owner, **more)
    del body["metadata"]["uid"], body["metadata"]["resourceVersion"], body["apiVersion"], body["kind"]
    return body


async def test_a_status_is_written_once_and_its_answer_is_in_the_cache(writer: Writer, cache: Cache, api: Api) -> None:
    obj = api.add(THING, config_map(version=1))
    cache.put(THING, obj)
    status = {"phase": "Running", "conditions": [{"type": "A", "status": "True"}]}
    await writer.write_status(THING, obj, status)
    cached = cache.get(THING, A)
    assert cached is not None
    assert cached["status"] == status
    await writer.write_status(THING, cached, status)
    (write,) = api.writes
    assert write.body["metadata"] == {
        "name": "a",
        "namespace": "ns",
        "uid": uid_of(obj),
        "resourceVersion": obj["metadata"]["resourceVersion"],
    }


@pytest.mark.parametrize(
    ("held", "wanted", "written"),
    [
        ({"phase": "A"}, {"phase": "A"}, False),
        ({"phase": "A"}, {"phase": "B"}, True),
        ({"phase": "A", "gone": 1}, {"phase": "A"}, True),  # a field of ours that is to go
        ({"phase": "A"}, {"phase": "A", "time": None, "list": [], "map": {"x": None}}, False),
        ({"phase": "A", "list": []}, {"phase": "A"}, False),  # a default of the schema
        ({"phase": "A", "count": 0}, {"phase": "A", "count": 0}, False),
        ({"phase": "A"}, {"phase": "A", "count": 0}, True),
        ({"phase": "A", "progress": {"step": 7}}, {"phase": "A"}, False),  # another writer's
        ({"phase": "A", "progress": {"step": 7}}, {"phase": "A", "progress": {"step": 8}}, False),
        ({"list": [{"a": 1}, {"b": 2}]}, {"list": [{"b": 2}, {"a": 1}]}, True),
    ],
)
async def test_only_a_difference_is_written(
    writer: Writer, api: Api, held: dict[str, Any], wanted: dict[str, Any], written: bool
) -> None:
    obj = api.add(THING, config_map(version=1, status=held))
    await writer.write_status(THING, obj, wanted, lambda name: name != "progress")
    assert bool(api.writes) is written


async def test_null_is_not_sent(writer: Writer, api: Api) -> None:
    obj = api.add(THING, config_map(version=1))
    await writer.write_status(THING, obj, {"phase": "A", "time": None, "list": [{"a": None, "b": 1}]})
    assert api.writes[0].body["status"] == {"phase": "A", "list": [{"b": 1}]}


async def test_a_status_of_a_version_that_has_moved_on_is_not_written(writer: Writer, cache: Cache, api: Api) -> None:
    stale = api.add(THING, config_map(version=1))
    cache.put(THING, stale)
    newer = api.add(THING, config_map(version=1, spec={"x": 2}))
    with pytest.raises(Conflict):
        await writer.write_status(THING, stale, {"phase": "A"})
    cached = cache.get(THING, A)
    assert cached is not None
    assert cached["spec"] == {"x": 2}, "the next try does not need the watch"
    await writer.write_status(THING, cached, {"phase": "A"})
    assert newer["metadata"]["uid"] == uid_of(cached)


async def test_a_status_of_what_is_gone_clears_the_cache(writer: Writer, cache: Cache, api: Api) -> None:
    obj = api.add(THING, config_map(version=1))
    cache.put(THING, obj)
    api.remove(THING, obj, silently=True)
    with pytest.raises(NotFound):
        await writer.write_status(THING, obj, {"phase": "A"})
    assert cache.get(THING, A) is None


@pytest.mark.parametrize("kind", [THING, CONFIG_MAP], ids=["watched", "not watched"])
async def test_create_makes_once_and_never_changes(writer: Writer, api: Api, kind: Any) -> None:
    first = await writer.create(kind, child(data={"k": "v"}))
    again = await writer.create(kind, child(data={"k": "other"}))
    assert uid_of(again) == uid_of(first)
    assert again["data"] == {"k": "v"}
    assert all(write.method == "POST" for write in api.writes)


async def test_what_is_cached_is_not_asked_for_again(writer: Writer, api: Api) -> None:
    await writer.create(THING, child())
    await writer.create(THING, child())
    assert len(api.seen) == 1


@pytest.mark.parametrize("cached", [True, False])
async def test_a_name_that_something_else_holds_is_left_alone(
    writer: Writer, cache: Cache, api: Api, cached: bool
) -> None:
    foreign = api.add(THING, child(owner="somebody", data={"k": "theirs"}))
    if cached:
        cache.put(THING, foreign)
    with pytest.raises(HeldByOther, match=r"things.x.dev ns/a exists and belongs to something else"):
        await writer.create(THING, child(data={"k": "ours"}))
    assert api.objects[THING.path("ns", "a")]["data"] == {"k": "theirs"}
    assert not [write for write in api.writes if write.method == "PATCH"]


async def test_patch_is_quiet_when_the_field_has_the_value(writer: Writer, cache: Cache, api: Api) -> None:
    obj = api.add(THING, config_map(version=1, spec={"suspend": False, "x": 1}))
    cache.put(THING, obj)
    await writer.patch(THING, obj, {"spec": {"suspend": False}})
    assert api.writes == []
    await writer.patch(THING, obj, {"spec": {"suspend": True}})
    assert len(api.writes) == 1
    cached = cache.get(THING, A)
    assert cached is not None
    assert cached["spec"]["suspend"] is True


@pytest.mark.parametrize(
    ("live", "wanted", "held"),
    [
        ({"a": 1, "added": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": [{"x": 1, "default": 0}]}, {"a": [{"x": 1}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({}, {"a": None, "b": {}, "c": []}, True),
        ({"a": {"b": 1}}, {"a": {"b": 1.0}}, True),
        ({"a": "1"}, {"a": 1}, False),
        ({"a": 1}, {"a": {"b": 1}}, False),
    ],
)
def test_contains(live: Any, wanted: Any, held: bool) -> None:
    assert contains(live, wanted) is held
