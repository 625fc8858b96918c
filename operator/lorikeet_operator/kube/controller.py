"""What a controller is: the kinds that it watches, whom a change concerns, and how one key is reconciled."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lorikeet_operator.kube.cache import Cache, Index, Slim
from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.events import Recorder
from lorikeet_operator.kube.kinds import Key, Kind, Object
from lorikeet_operator.kube.queue import Requeue
from lorikeet_operator.kube.writer import Writer


def whole(obj: Object) -> Object:
    """Return all of an object."""
    return obj


@dataclass(frozen=True)
class Watch:
    """A kind to keep in the cache. Controllers that share a kind must ask for it in the same way."""

    kind: Kind
    label_selector: str = ""
    """Objects that the server is to send; empty: all. The others cost neither memory nor rights."""
    index: Index | None = None
    """How `Cache.indexed` finds objects of this kind."""
    slim: Slim = whole
    """What of an object the cache keeps."""


@dataclass(frozen=True)
class Kube:
    """What a controller gets to do its work with."""

    cache: Cache
    writer: Writer
    recorder: Recorder
    client: Client
    """For reads that the cache does not hold. Writes go through `writer`."""


class Controller(Protocol):
    """One resource of ours, kept as its spec says."""

    @property
    def name(self) -> str:
        """Label of its metrics."""

    @property
    def watches(self) -> Sequence[Watch]:
        """All kinds that `reconcile` reads from the cache."""

    def keys_for(self, kind: Kind, obj: Object) -> Iterable[Key]:
        """Return the keys that a change of this object concerns.

        Called after the cache has taken the change in, also for our own writes and for what is gone (then
        with its last state). Must be quick and must not raise.
        """

    async def reconcile(self, key: Key) -> Requeue | None:
        """Read the cache, decide, write; return when to look again if nothing changes until then.

        May be called at any time and any number of times, never twice at once for one key. An exception is
        logged and tried again with growing pauses.
        """
