"""A reconcile that does not even end when it is cancelled."""

import asyncio
from collections.abc import Awaitable, Callable

from lorikeet_operator.kube.kinds import Key
from lorikeet_operator.kube.queue import Requeue


def stubborn(release: asyncio.Event) -> Callable[[Key], Awaitable[Requeue | None]]:
    """Return a reconcile that ends when `release` is set, and at nothing else."""

    async def reconcile(_: Key) -> Requeue | None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return None

    return reconcile
