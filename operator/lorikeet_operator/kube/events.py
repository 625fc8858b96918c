"""Kubernetes Events: what `kubectl describe` shows below an object."""

import hashlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import AlreadyExists, ApiError
from lorikeet_operator.kube.kinds import EVENT, Object, key_of, uid_of
from lorikeet_operator.kube.times import timestamp
from lorikeet_operator.metrics import EVENTS_FAILED

_log = logging.getLogger(__name__)

_REMEMBERED = 10_000
_MAX_MESSAGE = 1024
"""What the API server takes."""


class Recorder:
    """Writes Events in core/v1, whose times `kubectl get events` sorts by.

    The name of an Event follows from object, reason, message and occasion: the same thing is said once on each
    occasion, also after a restart, for as long as the cluster keeps Events (an hour by default). Record changes, not
    states.
    """

    def __init__(self, client: Client, component: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._client = client
        self._component = component
        self._now = now
        self._said: dict[str, None] = {}

    async def event(
        self, obj: Object, type_: Literal["Normal", "Warning"], reason: str, message: str, occasion: str = ""
    ) -> None:
        """Say something about an object. Never raises: an Event that is lost must not fail a reconcile."""
        name = _name(obj, reason, message, occasion)
        if name in self._said:
            return
        try:
            await self._client.create(EVENT, self._build(name, obj, type_, reason, message))
        except AlreadyExists:
            pass
        except ApiError as error:
            EVENTS_FAILED.inc()
            _log.warning("event %s for %s was not written: %s", reason, key_of(obj), error)
            return
        self._said[name] = None
        if len(self._said) > _REMEMBERED:
            del self._said[next(iter(self._said))]

    def _build(self, name: str, obj: Object, type_: str, reason: str, message: str) -> Object:
        key = key_of(obj)
        now = timestamp(self._now())
        return {
            "metadata": {"name": name, "namespace": key.namespace or "default"},
            "involvedObject": {
                "apiVersion": obj["apiVersion"],
                "kind": obj["kind"],
                "namespace": key.namespace or None,
                "name": key.name,
                "uid": uid_of(obj),
                "resourceVersion": obj["metadata"].get("resourceVersion"),
            },
            "type": type_,
            "reason": reason,
            "message": message if len(message) <= _MAX_MESSAGE else message[: _MAX_MESSAGE - 1] + "…",
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _name(obj: Object, *said: str) -> str:
    digest = hashlib.sha256("\0".join((uid_of(obj), *said)).encode()).hexdigest()
    return f"{key_of(obj).name[:200]}.{digest[:16]}"
