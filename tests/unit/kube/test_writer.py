from typing import Any

import pytest

from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import Conflict, HeldByOther, NotFound
from lorikeet_operator.kube.kinds import Key, Kind, Object, uid_of
from lorikeet_operator.kube.writer import APPLIED, Writer, contains
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
    assert len(api.seen) == 1, "what is gone need not be asked for, which may even be forbidden"


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


async def test_patch_of_a_subresource_changes_that_alone(writer: Writer, cache: Cache, api: Api) -> None:
    obj = api.add(THING, config_map(version=1, spec={"x": 1}))
    await writer.patch(THING, obj, {"metadata": {"annotations": {"a": "b"}}, "spec": {"x": 2}}, "status")
    (write,) = api.writes
    assert write.path == THING.path("ns", "a", "status")
    cached = cache.get(THING, A)
    assert cached is not None
    assert (cached["metadata"]["annotations"], cached["spec"]) == ({"a": "b"}, {"x": 1})


async def test_apply_makes_changes_and_is_quiet(writer: Writer, cache: Cache, api: Api) -> None:
    made = await writer.apply(THING, child(spec={"x": 1}))
    assert cache.get(THING, A) == made
    assert await writer.apply(THING, child(spec={"x": 1})) == made
    assert len(api.writes) == 1
    changed = await writer.apply(THING, child(spec={"x": 2}))
    assert (uid_of(changed), changed["spec"]) == (uid_of(made), {"x": 2})
    assert len(api.writes) == 2


async def test_apply_takes_back_what_is_no_longer_named(writer: Writer, api: Api) -> None:
    await writer.apply(THING, child(spec={"x": 1, "y": {"z": 2}, "w": 3}))
    await writer.apply(THING, child(spec={"x": 1}))
    assert api.objects[THING.path(*A)]["spec"] == {"x": 1}


async def test_apply_leaves_alone_what_others_have_set(writer: Writer, cache: Cache, api: Api) -> None:
    made = await writer.apply(THING, child(spec={"x": 1}))
    metadata = {**made["metadata"], "annotations": {**made["metadata"]["annotations"], "theirs": "yes"}}
    cache.put(THING, api.add(THING, {**made, "metadata": metadata, "spec": {"x": 1, "theirs": 2}}))
    await writer.apply(THING, child(spec={"x": 1}))
    assert len(api.writes) == 1
    await writer.apply(THING, child(spec={"x": 2}))
    assert api.objects[THING.path(*A)]["spec"] == {"x": 2, "theirs": 2}
    assert api.objects[THING.path(*A)]["metadata"]["annotations"]["theirs"] == "yes"


@pytest.mark.parametrize("field", ["spec", "labels", "annotations"])
async def test_apply_sets_right_what_others_have_changed(writer: Writer, cache: Cache, api: Api, field: str) -> None:
    made = await writer.apply(THING, child(spec={"x": 1}))
    metadata = made["metadata"]
    theirs = {
        "spec": {**made, "spec": {"x": 7}},
        "labels": {**made, "metadata": {**metadata, "labels": {"owner": "me"}}},
        "annotations": {**made, "metadata": {**metadata, "annotations": {APPLIED: "0123"}}},
    }
    cache.put(THING, api.add(THING, theirs[field]))
    set_right = await writer.apply(THING, child(spec={"x": 1}))
    assert (set_right["spec"], set_right["metadata"]["labels"]) == (made["spec"], metadata["labels"])
    assert set_right["metadata"]["annotations"] == metadata["annotations"]


CANONICAL: dict[Any, Any] = {"1000m": "1", 2**31: "2147483648", "1024Mi": "1Gi", 4: "4"}


def rewritten(kind: Kind, obj: Object) -> Object:
    """Return an object as Kubernetes stores it: canonical quantities, no empty texts, defaults."""

    def stored(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: stored(each) for name, each in value.items() if each != ""}
        if isinstance(value, list):
            return [stored(each) for each in value]
        return CANONICAL.get(value, value)

    return {**obj, "spec": {"default": True, **stored(obj["spec"])}}


async def test_apply_knows_its_own_words_in_those_of_the_server(api: Api, client: Client) -> None:
    api.defaults = rewritten
    said = {
        "cpu": "1000m",
        "memory": 2**31,
        "shm": "1024Mi",
        "gpus": 4,
        "value": "",
        "env": [{"name": "A", "value": ""}],
    }
    for _ in range(2):  # another operator, which has read it, too
        cache = Cache()
        cache.register(THING)
        for _ in range(2):
            await Writer(client, cache).apply(THING, child(spec=said))
    assert len(api.writes) == 1


def with_a_sidecar(kind: Kind, obj: Object) -> Object:
    """Return an object as a webhook has it that adds to a list, whatever was sent."""
    return {**obj, "spec": {**obj["spec"], "containers": [*obj["spec"]["containers"][:1], "sidecar"]}}


async def test_apply_does_not_send_again_what_a_webhook_adds_to(writer: Writer, cache: Cache, api: Api) -> None:
    api.defaults = with_a_sidecar
    await writer.apply(THING, child(spec={"containers": ["ours"]}))
    await writer.apply(THING, child(spec={"containers": ["ours"]}))
    before = len(api.writes)
    held = await writer.apply(THING, child(spec={"containers": ["ours"]}))
    assert len(api.writes) == before
    cache.put(THING, api.add(THING, {**held, "status": {"replicas": 1}}))
    await writer.apply(THING, child(spec={"containers": ["ours"]}))
    assert len(api.writes) == before, "what it says is what it said"
    cache.put(THING, api.add(THING, {**held, "spec": {"containers": ["theirs", "sidecar"]}}))
    await writer.apply(THING, child(spec={"containers": ["ours"]}))
    assert api.objects[THING.path(*A)]["spec"]["containers"] == ["ours", "sidecar"]
    await writer.apply(THING, child(spec={"containers": ["others"]}))
    assert api.objects[THING.path(*A)]["spec"]["containers"] == ["others", "sidecar"]


async def test_apply_asks_the_server_for_what_the_cache_does_not_have(writer: Writer, cache: Cache, api: Api) -> None:
    made = await writer.apply(THING, child(spec={"x": 1}))
    cache.delete(THING, made)
    assert uid_of(await writer.apply(THING, child(spec={"x": 1}))) == uid_of(made)
    assert len(api.writes) == 1


@pytest.mark.parametrize("cached", [True, False])
async def test_apply_leaves_a_name_alone_that_something_else_holds(
    writer: Writer, cache: Cache, api: Api, cached: bool
) -> None:
    foreign = api.add(THING, child(owner="somebody", spec={"x": 1}))
    if cached:
        cache.put(THING, foreign)
    with pytest.raises(HeldByOther, match=r"things.x.dev ns/a exists and belongs to something else"):
        await writer.apply(THING, child(spec={"x": 2}))
    assert api.writes == []


async def test_apply_waits_for_what_an_earlier_owner_of_the_name_left(writer: Writer, cache: Cache, api: Api) -> None:
    made = await writer.apply(THING, child(spec={"x": 1}))
    (reference,) = made["metadata"]["ownerReferences"]
    next_one = child(spec={"x": 1})
    next_one["metadata"]["ownerReferences"] = [{**reference, "uid": "the next one"}]
    with pytest.raises(Conflict, match="of an earlier owner is being removed"):
        await writer.apply(THING, next_one)
    assert len(api.writes) == 1


async def test_apply_never_changes_a_namesake_that_the_cache_does_not_know(
    writer: Writer, cache: Cache, api: Api
) -> None:
    made = await writer.apply(THING, child(spec={"x": 1}))
    api.remove(THING, made, silently=True)
    theirs = api.add(THING, child(owner="somebody", spec={"x": 7}))
    with pytest.raises(Conflict):
        await writer.apply(THING, child(spec={"x": 2}))
    assert api.objects[THING.path(*A)] == theirs
    with pytest.raises(HeldByOther):
        await writer.apply(THING, child(spec={"x": 2}))


async def test_apply_makes_anew_what_is_gone_without_the_cache_knowing(writer: Writer, cache: Cache, api: Api) -> None:
    api.remove(THING, await writer.apply(THING, child(spec={"x": 1})), silently=True)
    with pytest.raises(Conflict):
        await writer.apply(THING, child(spec={"x": 2}))
    assert cache.get(THING, A) is None, "the next try does not need the watch"
    assert (await writer.apply(THING, child(spec={"x": 2})))["spec"] == {"x": 2}


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
