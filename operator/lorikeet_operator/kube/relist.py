"""Full lists: the truth at start-up, and later the finder of what a watch has missed."""

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from functools import partial

from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.controller import Watch
from lorikeet_operator.kube.errors import ApiError
from lorikeet_operator.kube.kinds import Kind
from lorikeet_operator.metrics import MISSED

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
_SETTLE_SECONDS = 5.0
"""How long a watch that starts afresh gets to bring its news before a list looks for what it has missed."""
_SECOND_LIST_SECONDS = 30.0
"""When the second list comes: what went between the first list and the start of the watch, no watch tells."""


class Relister:
    """Lists every kind at start-up and again in intervals."""

    def __init__(
        self, client: Client, cache: Cache, watches: Iterable[Watch], namespaces: Sequence[str], interval: float
    ) -> None:
        self._client = client
        self._cache = cache
        self._watches = {watch.kind: watch for watch in watches}
        self._namespaces = namespaces
        self._interval = interval
        self._wake = {kind: asyncio.Event() for kind in self._watches}

    def hint(self, kind: Kind) -> None:
        """Have a kind listed soon: its watch has started afresh, and deletions may have fallen in the gap."""
        self._wake[kind].set()

    async def run(self) -> None:
        """List for ever; raise if a kind cannot be listed for a reason that waiting does not cure."""
        async with asyncio.TaskGroup() as group:
            for kind in self._watches:
                group.create_task(self._keep_listing(kind))

    async def relist(self, kind: Kind) -> int:
        """List a kind once; return how many changes that brought."""
        watch = self._watches[kind]
        changes = 0
        for namespace in self._namespaces if kind.namespaced and self._namespaces else ("",):
            keep = partial(self._cache.kept, kind)
            listing = await self._client.list(kind, namespace, watch.label_selector, kept=keep)
            changes += self._cache.replace(kind, listing.items, listing.version, namespace)
        self._cache.mark_listed(kind)
        return changes

    async def _keep_listing(self, kind: Kind) -> None:
        pause = min(_SECOND_LIST_SECONDS, self._interval)
        while True:
            synced = self._cache.synced(kind)
            try:
                changes = await self.relist(kind)
            except ApiError as error:
                # Without the kind or the right to read it there is nothing to run on: end, and be restarted.
                if not synced and not error.retryable:
                    _log.error("%s cannot be listed: are the CRDs installed, and may this account list it?", kind)
                    raise
                _log.warning("%s could not be listed and will be tried again: %s", kind, error)
                await asyncio.sleep(error.retry_after or _RETRY_SECONDS)
                continue
            if synced and changes:
                MISSED.labels(kind.resource).inc(changes)
                _log.info("a list of %s brought %d changes before the watch did", kind, changes)
            await self._pause(kind, pause)
            pause = self._interval

    async def _pause(self, kind: Kind, seconds: float) -> None:
        """Wait for the next turn, or for a hint; the jitter keeps kinds and replicas from listing all at once."""
        try:
            async with asyncio.timeout(_jittered(seconds)):
                await self._wake[kind].wait()
        except TimeoutError:
            return
        while self._wake[kind].is_set():
            # A large listing takes its time to pass through kopf, and hints with every object.
            self._wake[kind].clear()
            await asyncio.sleep(_jittered(_SETTLE_SECONDS))


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311  no secret
