"""What we know of the cluster: the newest known state of each watched object.

Fed by watch events, by full lists, and by the answers to our own writes, in any order. Resource versions decide:
the newest wins, and what was deleted at a version stays away until something newer arrives.
"""

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from lorikeet_operator.kube.kinds import Key, Kind, Object, key_of, label_of, uid_of, version_of

Index: TypeAlias = Callable[[Object], Iterable[tuple[str, str]]]
"""Returns the namespaces and values under which `Cache.indexed` finds an object; no namespace: wherever it is."""

Slim: TypeAlias = Callable[[Object], Object]
"""Returns an object without the parts that nobody reads: there may be thousands in memory."""

Listener: TypeAlias = Callable[[Kind, Object], None]
"""Called after each change with the new object, or with the last state of one that is gone."""

_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_SHORT: Final = 32
"""Characters of texts that are likely to be equal in many objects."""
_TOMBSTONE_SECONDS = 900.0
"""Longer than any request and any replay of a watch may take."""


def by_label(label: str) -> Index:
    """Return an index by namespace and value of a label, such as the one that names the owner."""

    def values(obj: Object) -> Iterable[tuple[str, str]]:
        value = label_of(obj, label)
        return () if value is None else ((key_of(obj).namespace, value),)

    return values


@dataclass
class _Store:
    index: Index | None
    slim: Slim
    registered: float
    objects: dict[Key, Object] = field(default_factory=dict)
    indexed: dict[tuple[str, str], set[Key]] = field(default_factory=lambda: defaultdict(set))
    tombstones: dict[str, tuple[int, float]] = field(default_factory=dict)
    synced: bool = False
    listed: float | None = None
    seen: float | None = None


class Cache:
    """Newest known state of the objects of all watched kinds. Objects are shared: never change one."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._stores: dict[Kind, _Store] = {}
        self._listeners: list[Listener] = []
        self._all_synced = asyncio.Event()

    def register(self, kind: Kind, index: Index | None = None, slim: Slim = lambda obj: obj) -> None:
        """Start to keep a kind."""
        self._stores[kind] = _Store(index, slim, self._now())

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` after each change, whichever way it came."""
        self._listeners.append(listener)

    def keeps(self, kind: Kind) -> bool:
        """Return whether the kind is watched; of any other kind the cache knows nothing."""
        return kind in self._stores

    @property
    def kinds(self) -> list[Kind]:
        """All kinds that are kept."""
        return list(self._stores)

    def get(self, kind: Kind, key: Key) -> Object | None:
        """Return one object."""
        store = self._stores.get(kind)
        return store.objects.get(key) if store else None

    def all(self, kind: Kind) -> list[Object]:
        """Return all objects of a kind, in no order."""
        return list(self._stores[kind].objects.values())

    def indexed(self, kind: Kind, namespace: str, value: str) -> list[Object]:
        """Return the objects that the kind's index files under a namespace and a value, sorted by name."""
        store = self._stores[kind]
        return [store.objects[key] for key in sorted(store.indexed.get((namespace, value), ()))]

    def put(self, kind: Kind, obj: Object) -> bool:
        """Take in an object from a watch, a list or the answer to a write; return whether it was news."""
        if kind not in self._stores:
            return False
        if not self._is_news(self._stores[kind], obj):
            return False
        self._take(kind, self.kept(kind, obj))
        return True

    def kept(self, kind: Kind, obj: Object) -> Object:
        """Return what the cache would keep of an object; `replace` takes it in that form."""
        compact: Object = _compact(self._stores[kind].slim(_bare(obj)))
        return compact

    def _take(self, kind: Kind, obj: Object) -> None:
        store = self._stores[kind]
        key = key_of(obj)
        before = store.objects.get(key)
        if before is not None:
            self._unfile(store, key, before)
            if uid_of(before) != uid_of(obj):
                self._bury(store, before, version_of(obj))
        store.objects[key] = obj
        self._file(store, key, obj)
        if before is not None and uid_of(before) != uid_of(obj):
            self._tell(kind, before)  # it is gone, and nothing else will say so
        self._tell(kind, obj)

    def delete(self, kind: Kind, obj: Object) -> bool:
        """Take in that an object is gone; `obj` is its last state. Return whether that was news."""
        store = self._stores[kind]
        self._bury(store, obj, version_of(obj))
        key = key_of(obj)
        held = store.objects.get(key)
        if held is None or uid_of(held) != uid_of(obj) or version_of(held) > version_of(obj):
            return False
        del store.objects[key]
        self._unfile(store, key, held)
        self._tell(kind, held)
        return True

    def replace(self, kind: Kind, items: Iterable[Object], version: int, namespace: str = "") -> int:
        """Take in a complete list (of one namespace) made at `version`; return how many changes it brought.

        The items are in the form of `kept`. What is not in the list and was not written after it is gone, whether a
        watch said so or not.
        """
        store = self._stores[kind]
        changes = 0
        listed: set[str] = set()
        for item in items:
            listed.add(uid_of(item))
            if self._is_news(store, item):
                self._take(kind, item)
                changes += 1
        for key, obj in list(store.objects.items()):
            if namespace and key.namespace != namespace:
                continue
            if uid_of(obj) not in listed:
                # Which leaves alone what was written after the list.
                changes += self.delete(kind, {**obj, "metadata": {**obj["metadata"], "resourceVersion": version}})
        return changes

    def mark_listed(self, kind: Kind) -> None:
        """Note that lists of the whole kind have just been taken in: from the first time on it is synced."""
        store = self._stores[kind]
        store.synced = True
        store.listed = store.seen = self._now()
        if all(each.synced for each in self._stores.values()):
            self._all_synced.set()

    def mark_seen(self, kind: Kind) -> None:
        """Note that the watch of a kind is alive."""
        self._stores[kind].seen = self._now()

    def synced(self, kind: Kind) -> bool:
        """Return whether a complete list has been taken in."""
        return self._stores[kind].synced

    async def wait_synced(self) -> None:
        """Return once every kind is synced."""
        await self._all_synced.wait()

    def relist_age(self, kind: Kind) -> float:
        """Return the seconds since the last complete list, or since we started to wait for one."""
        store = self._stores[kind]
        return self._now() - (store.registered if store.listed is None else store.listed)

    def watch_age(self, kind: Kind) -> float:
        """Return the seconds since the last event or list."""
        store = self._stores[kind]
        return self._now() - (store.registered if store.seen is None else store.seen)

    def _is_news(self, store: _Store, obj: Object) -> bool:
        buried = store.tombstones.get(uid_of(obj))
        if buried is not None and version_of(obj) <= buried[0]:
            return False
        held = store.objects.get(key_of(obj))
        return held is None or version_of(obj) > version_of(held)

    def _bury(self, store: _Store, obj: Object, version: int) -> None:
        now = self._now()
        before, _ = store.tombstones.pop(uid_of(obj), (0, 0.0))
        store.tombstones[uid_of(obj)] = (max(before, version), now)
        # In order of time, as each is put at the end: the old ones are in front.
        while now - next(iter(store.tombstones.values()))[1] > _TOMBSTONE_SECONDS:
            del store.tombstones[next(iter(store.tombstones))]

    def _file(self, store: _Store, key: Key, obj: Object) -> None:
        for under in store.index(obj) if store.index else ():
            store.indexed[under].add(key)

    def _unfile(self, store: _Store, key: Key, obj: Object) -> None:
        for under in store.index(obj) if store.index else ():
            keys = store.indexed[under]
            keys.discard(key)
            if not keys:
                del store.indexed[under]

    def _tell(self, kind: Kind, obj: Object) -> None:
        for listener in self._listeners:
            listener(kind, obj)


def _bare(obj: Object) -> Object:
    """Return the object without what may be half of it and nobody here reads: who wrote what, and kubectl's copy."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    if _LAST_APPLIED in (metadata.get("annotations") or {}):
        metadata["annotations"] = {
            name: value for name, value in metadata["annotations"].items() if name != _LAST_APPLIED
        }
    return {**obj, "metadata": metadata}


def _compact(value: Any) -> Any:
    """Return equal JSON in which equal names and short texts are one object each: there are thousands of them."""
    if isinstance(value, dict):
        return {sys.intern(name): _compact(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_compact(each) for each in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= _SHORT else value
