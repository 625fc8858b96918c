"""Writes that keep quiet when there is nothing to say, and whose answers go into the cache at once."""

import hashlib
import json
import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import AlreadyExists, Conflict, HeldByOther, NotFound
from lorikeet_operator.kube.kinds import Kind, Object, controller_uid, key_of, uid_of

APPLIED: Final = "lorikeet.dev/applied"
"""Annotation of what `apply` has made: the hash of what it was told to make."""


class Writer:
    """Sends what differs from the cache. A reconcile writes through this, never through the client."""

    def __init__(self, client: Client, cache: Cache) -> None:
        self._client = client
        self._cache = cache
        self._answers: dict[str, str] = {}
        """By uid of a child that the server has made into something else than it was told: the hash of that."""

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
        self._check_owner(kind, held, desired)
        return held

    def _check_owner(self, kind: Kind, held: Object, desired: Object) -> None:
        if controller_uid(held) == controller_uid(desired):
            return
        if held["metadata"].get("deletionTimestamp") or _owner_name(held) == _owner_name(desired):
            raise Conflict(409, "Conflict", f"{kind.resource} {key_of(desired)} of an earlier owner is being removed")
        raise HeldByOther(kind.resource, str(key_of(desired)))

    async def apply(self, kind: Kind, desired: Object) -> Object:
        """Bring a child to `desired`, or send nothing if it is that already.

        `desired` carries a controller ownerReference. The hash of what was applied last lies on the child, so that a
        field that is no longer named is taken back, too. What others have added to it stays, and is not sent against
        again. `HeldByOther` if the name is taken by an object that this owner does not control; `Conflict` if that is
        about to go: a namesake of the owner had it.
        """
        digest = _hash(desired)
        metadata = desired["metadata"]
        marked = {**metadata, "annotations": {**metadata.get("annotations", {}), APPLIED: digest}}
        desired = {**desired, "metadata": marked}
        held = self._cache.get(kind, key_of(desired))
        if held is None:
            # Not simply created: what a create has set, an apply never takes back.
            try:
                held = self._keep(kind, await self._client.get(kind, key_of(desired)))
            except NotFound:
                return self._keep(kind, await self._client.apply(kind, desired))
        self._check_owner(kind, held, desired)
        if contains(held, desired, same=_same_stored):
            return held
        if contains(held["metadata"], marked) and self._answers.get(uid_of(held)) == _hash(_content(held)):
            return held  # a webhook or somebody has added to a list, and an apply would change nothing
        desired = {**desired, "metadata": {**marked, "uid": uid_of(held)}}
        try:
            answer = self._keep(kind, await self._client.apply(kind, desired))
        except (Conflict, NotFound) as error:
            await self._refresh(kind, held, error)
            raise
        if not contains(answer, desired, same=_same_stored):
            self._answers[uid_of(answer)] = _hash(_content(answer))
        return answer

    async def patch(self, kind: Kind, obj: Object, body: Mapping[str, Any], subresource: str = "") -> Object:
        """Set a few fields of a cached object, such as a Job's `suspend`, unless they have these values already."""
        if contains(obj, body):
            return obj
        try:
            return self._keep(kind, await self._client.patch(kind, key_of(obj), body, uid_of(obj), subresource))
        except (Conflict, NotFound) as error:
            await self._refresh(kind, obj, error)
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
        except (Conflict, NotFound) as error:
            await self._refresh(kind, obj, error)
            raise
        return self._keep(kind, answer)

    def _keep(self, kind: Kind, answer: Object) -> Object:
        if self._cache.keeps(kind):
            self._cache.put(kind, answer)
        return answer

    async def _refresh(self, kind: Kind, obj: Object, error: Conflict | NotFound) -> None:
        """Take in what we were wrong about, so that the next try does not depend on how fast the watch is."""
        if isinstance(error, Conflict):
            with suppress(NotFound):
                self._keep(kind, await self._client.get(kind, key_of(obj)))
                return
        if self._cache.keeps(kind):
            self._cache.delete(kind, obj)


def _owner_name(obj: Object) -> tuple[str, str] | None:
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return reference["kind"], reference["name"]
    return None


def contains(live: Any, wanted: Any, same: Callable[[Any, Any], bool] = operator.eq) -> bool:
    """Return whether every field of `wanted` has its value in `live`; the server may have added others.

    Lists must be equally long and match item by item. `null` matches an absent field. `same` compares what is neither
    list nor object.
    """
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not _without_empty(wanted) and live is None
        return all(contains(live.get(name), value, same) for name, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return not wanted and live is None
        return len(live) == len(wanted) and all(contains(*pair, same) for pair in zip(live, wanted, strict=True))
    return same(live, wanted)


def _same_stored(live: Any, wanted: Any) -> bool:
    """Return whether the server stores one value as the other: it writes 1000m as 1, and keeps no empty text."""
    if live == wanted or (live is None and wanted == ""):
        return True
    try:
        return bool(parse_quantity(live) == parse_quantity(wanted))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, ArithmeticError):
        return False


def _content(obj: Object) -> Object:
    """Return what an object says, but for who it is and how it stands."""
    return {name: value for name, value in obj.items() if name not in ("metadata", "status")}


def _hash(obj: Object) -> str:
    return hashlib.sha256(json.dumps(obj, sort_keys=True).encode()).hexdigest()[:16]


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
