"""Writes that keep quiet when there is nothing to say, and whose answers go into the cache at once."""

from collections.abc import Callable, Mapping
from typing import Any

from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import AlreadyExists, Conflict, HeldByOther, NotFound
from lorikeet_operator.kube.kinds import Kind, Object, controller_uid, key_of, uid_of


class Writer:
    """Sends what differs from the cache. A reconcile writes through this, never through the client."""

    def __init__(self, client: Client, cache: Cache) -> None:
        self._client = client
        self._cache = cache

    async def create(self, kind: Kind, desired: Object) -> Object:
        """Make a child that is never changed afterwards, or return the one that is there already.

        `desired` carries a controller ownerReference. `HeldByOther` if the name is taken by an object that
        this owner does not control; `Conflict` if that is about to go: a namesake of the owner had it.
        """
        held = self._cache.get(kind, key_of(desired)) if self._cache.keeps(kind) else None
        if held is None:
            try:
                return self._keep(kind, await self._client.create(kind, desired))
            except AlreadyExists:
                # The kind is not watched, the cache lags, or the object lacks the labels by which we watch.
                held = self._keep(kind, await self._client.get(kind, key_of(desired)))
        if controller_uid(held) == controller_uid(desired):
            return held
        if held["metadata"].get("deletionTimestamp") or _owner_name(held) == _owner_name(desired):
            raise Conflict(409, "Conflict", f"{kind.resource} {key_of(desired)} of an earlier owner is being removed")
        raise HeldByOther(kind.resource, str(key_of(desired)))

    async def patch(self, kind: Kind, obj: Object, body: Mapping[str, Any]) -> Object:
        """Set a few fields of a cached object, such as a Job's `suspend`, unless they have these values already."""
        if contains(obj, body):
            return obj
        try:
            return self._keep(kind, await self._client.patch(kind, key_of(obj), body, uid_of(obj)))
        except (Conflict, NotFound):
            await self._refresh(kind, obj)
            raise

    async def write_status(
        self, kind: Kind, obj: Object, status: Mapping[str, Any], ours: Callable[[str], bool] = lambda name: True
    ) -> Object:
        """Bring the status to `status` in one request, or send nothing if it is that already.

        The write is for the very version that the status was computed from: `Conflict` or `NotFound` if it has
        moved on; the cache then has what is there now, and the reconcile is to run again. `ours` tells which top-level
        fields of the status are this writer's: the others are neither compared nor touched.
        """
        wanted = _without_null({name: value for name, value in status.items() if ours(name)})
        held = {name: value for name, value in (obj.get("status") or {}).items() if ours(name)}
        if _without_empty(held) == _without_empty(wanted):
            return obj
        key = key_of(obj)
        metadata = {"name": key.name, "uid": uid_of(obj), "resourceVersion": obj["metadata"]["resourceVersion"]}
        if key.namespace:
            metadata["namespace"] = key.namespace
        try:
            answer = await self._client.apply_status(kind, {"metadata": metadata, "status": wanted})
        except (Conflict, NotFound):
            await self._refresh(kind, obj)
            raise
        return self._keep(kind, answer)

    def _keep(self, kind: Kind, answer: Object) -> Object:
        if self._cache.keeps(kind):
            self._cache.put(kind, answer)
        return answer

    async def _refresh(self, kind: Kind, obj: Object) -> None:
        """Read what we were wrong about, so that the next try does not depend on how fast the watch is."""
        try:
            self._keep(kind, await self._client.get(kind, key_of(obj)))
        except NotFound:
            if self._cache.keeps(kind):
                self._cache.delete(kind, obj)


def _owner_name(obj: Object) -> tuple[str, str] | None:
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return reference["kind"], reference["name"]
    return None


def contains(live: Any, wanted: Any) -> bool:
    """Return whether every field of `wanted` has its value in `live`; the server may have added others.

    Lists must be equally long and match item by item. `null` matches an absent field.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not _without_empty(wanted) and live is None
        return all(contains(live.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return not wanted and live is None
        return len(live) == len(wanted) and all(map(contains, live, wanted))
    return bool(live == wanted)


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_null(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_null(each) for each in value]
    return value


def _without_empty(value: Any) -> Any:
    """Return the value without empty fields: the server stores an empty list or none, as the schema has it."""
    if isinstance(value, Mapping):
        kept = {name: _without_empty(each) for name, each in value.items()}
        return {name: each for name, each in kept.items() if each not in (None, {}, [])}
    if isinstance(value, list):
        return [_without_empty(each) for each in value]
    return value
