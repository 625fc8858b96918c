"""The watch streams, by kopf, which feed the cache and do nothing else.

kopf gets `on.event` handlers alone: those make it keep no state in annotations, set no finalizers and post no
events, so it never writes. What it does when a stream breaks:

- connection lost, server restarted, stream silent for 70 s: it connects again and goes on where it was;
- 410: it lists again without noticing what is gone, so a fresh listing hints the relister, which does notice;
- any other error inside a stream, or 403 and 5xx that outlast its retries (about a minute): `run` raises, the
  process ends with 1, and the kubelet starts it again with fresh lists.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import kopf
from kubernetes.aio.client.configuration import Configuration

from lorikeet_operator.kube import config
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.controller import Watch
from lorikeet_operator.kube.kinds import Kind

_BACKOFFS = (1, 1, 2, 3, 5, 5, 5, 5, 5, 5, 5, 5, 5)
"""Short pauses: when the API server is back, the watches are back within five seconds."""


def merge(watches: Sequence[Watch]) -> list[Watch]:
    """Return one watch for each kind; `ValueError` if two controllers want to watch a kind in different ways."""
    merged: dict[Kind, Watch] = {}
    for watch in watches:
        if merged.setdefault(watch.kind, watch) != watch:
            raise ValueError(f"{watch.kind} is watched in two different ways")
    return list(merged.values())


class _NoDiffs(kopf.DiffBaseStorage):
    """Spares kopf the copies of every object by which it would find out what has changed: nobody asks."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        pass


def _settings(watches: Sequence[Watch]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiffs()
    # No watching of namespaces and CRDs: it would need rights, and all that we watch is known beforehand.
    settings.scanning.disabled = True
    settings.networking.error_backoffs = _BACKOFFS
    settings.networking.connect_timeout = 10.0
    settings.watching.chunk_size = 100
    # kopf keeps a task for each object that it has just seen: at the first listing, one for every object there is.
    settings.queueing.idle_timeout = 0.5
    for watch in watches:
        if watch.label_selector:
            settings.watching.label_selectors[_selector(watch.kind)] = watch.label_selector
    return settings


def _selector(kind: Kind) -> tuple[str, str, str]:
    return kind.group, kind.version, kind.plural


def _registry(
    watches: Sequence[Watch], cache: Cache, configuration: Configuration, on_listing: Callable[[Kind], None]
) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await config.connection_info(configuration)

    kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)(login)
    for watch in watches:
        group, version, plural = _selector(watch.kind)
        kopf.on.event(group, version, plural, registry=registry)(_feeder(watch.kind, cache, on_listing))
    return registry


def _feeder(kind: Kind, cache: Cache, on_listing: Callable[[Kind], None]) -> Any:
    async def feed(event: kopf.RawEvent, **_: Any) -> None:
        cache.mark_seen(kind)
        obj: Any = event["object"]
        if event["type"] == "DELETED":
            cache.delete(kind, obj)
            return
        cache.put(kind, obj)
        if event["type"] is None:
            on_listing(kind)

    return feed


async def run(
    watches: Sequence[Watch],
    namespaces: Sequence[str],
    cache: Cache,
    configuration: Configuration,
    *,
    stop: asyncio.Event,
    on_listing: Callable[[Kind], None],
    on_started: Callable[[], None],
) -> None:
    """Feed the cache until `stop` is set; raise if the streams cannot go on.

    `on_started` is called once kopf has taken over SIGTERM, for the caller to take it back.
    """
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=_registry(watches, cache, configuration, on_listing),
        settings=_settings(watches),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )
    on_started()
    # Not `kopf.run_tasks`: when one of its tasks ends, it waits for and cancels every other task of the loop,
    # those of our reconciles, too.
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    # A stream that fails leaves the others behind.
    streams = {task for task in asyncio.all_tasks() - before if task.get_name().startswith("watcher for ")}
    for task in pending | streams:
        task.cancel()
    await asyncio.gather(*pending, *streams, return_exceptions=True)
    for task in done:
        task.result()
