"""One of several replicas leads: election by a Lease, safe against a leader that does not notice its end.

The holder renews the Lease every few seconds. Others take it over when they have seen it unchanged for its whole
duration, by their own clock: no two clocks are compared. A holder that could not renew for a shorter time than that
ends its work before anybody else can begin: `hold` raises, and the process is to end. Every write carries the resource
version that it was decided on, so of two that reach for the Lease one gets it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from lorikeet_operator.kube.kinds import LEASE, Key, Object, uid_of

_log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another replica leads, or may begin to: this process must not write any more."""


@dataclass(frozen=True)
class Timing:
    """The times of an election, in seconds."""

    duration: float
    """How long a Lease that is not renewed is respected."""

    @property
    def renew_deadline(self) -> float:
        """When a leader that could not renew stops; what is left of the duration is for its work to end."""
        return self.duration * 2 / 3

    @property
    def retry(self) -> float:
        """Between two looks at the Lease."""
        return self.duration * 2 / 15


class Lease:
    """This process's part in the election."""

    def __init__(
        self,
        client: Client,
        key: Key,
        identity: str,
        timing: Timing,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._key = key
        self._identity = identity
        self._timing = timing
        self._now = now
        self._held: Object | None = None
        self._renewed = 0.0

    @property
    def leads(self) -> bool:
        """Whether this process holds the Lease, and has renewed it in time."""
        return self._held is not None and self._clock() - self._renewed < self._timing.renew_deadline

    async def acquire(self) -> None:
        """Return once this process leads."""
        seen, since = "", self._clock()
        while True:
            try:
                async with asyncio.timeout(self._timing.renew_deadline):
                    found = await self._read()
                    version = "" if found is None else str(found["metadata"]["resourceVersion"])
                    if version != seen:
                        seen, since = version, self._clock()
                    if found is None or self._is_free(found) or self._clock() - since >= self._timing.duration:
                        await self._take(found)
                        _log.info("this replica leads: %s", self._identity)
                        return
            except (Conflict, AlreadyExists):
                _log.info("another replica was quicker to take the Lease")
            except (ApiError, TimeoutError) as error:
                _log.warning("the Lease %s could not be read or taken and will be tried again: %s", self._key, error)
            await asyncio.sleep(self._timing.retry)

    async def hold(self) -> None:
        """Renew until it fails for too long. Raises LeaseLost."""
        while True:
            await asyncio.sleep(self._timing.retry)
            left = self._renewed + self._timing.renew_deadline - self._clock()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._take(self._held)
            except (Conflict, NotFound) as error:
                self._held = None
                raise LeaseLost(f"the Lease {self._key} was taken away") from error
            except (ApiError, TimeoutError) as error:
                if self._clock() - self._renewed >= self._timing.renew_deadline:
                    self._held = None
                    raise LeaseLost(f"the Lease {self._key} could not be renewed in time: {error}") from error
                _log.warning("the Lease %s was not renewed and will be tried again: %s", self._key, error)

    async def release(self) -> None:
        """Give the Lease back at once, so that the next leader need not wait for its end."""
        if self._held is None:
            return
        held, self._held = self._held, None
        try:
            async with asyncio.timeout(self._timing.retry):
                await self._patch(held, {"holderIdentity": "", "leaseDurationSeconds": 1})
        except (ApiError, TimeoutError) as error:
            _log.warning("the Lease %s was not given back: %s", self._key, error)

    async def _read(self) -> Object | None:
        try:
            return await self._client.get(LEASE, self._key)
        except NotFound:
            return None

    def _is_free(self, found: Object) -> bool:
        return (found.get("spec") or {}).get("holderIdentity") in (None, "", self._identity)

    async def _take(self, found: Object | None) -> None:
        """Make or renew the Lease as ours. Raises Conflict or AlreadyExists if it is no longer as it was `found`."""
        began = self._clock()
        time = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": round(self._timing.duration) or 1,
            "renewTime": time,
        }
        if found is None:
            metadata = {"name": self._key.name, "namespace": self._key.namespace}
            self._held = await self._client.create(LEASE, {"metadata": metadata, "spec": {**spec, "acquireTime": time}})
        else:
            before = found.get("spec") or {}
            if before.get("holderIdentity") != self._identity:
                spec |= {"acquireTime": time, "leaseTransitions": int(before.get("leaseTransitions") or 0) + 1}
            self._held = await self._patch(found, spec)
        # From before the request: the server may have taken it in at any time since.
        self._renewed = began

    async def _patch(self, held: Object, spec: dict[str, Any]) -> Object:
        body = {"metadata": {"resourceVersion": held["metadata"]["resourceVersion"]}, "spec": spec}
        return await self._client.patch(LEASE, self._key, body, uid_of(held))

    @staticmethod
    def _clock() -> float:
        return asyncio.get_running_loop().time()
