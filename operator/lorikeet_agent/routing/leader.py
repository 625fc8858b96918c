"""Brings Envoy from one wanted file to the next so that no request meets a cluster that is not there.

Envoy reads its files in no order. So new clusters come first, routes once these are healthy, and old clusters go when
nothing is on its way to them. Each file names its version, and Envoy tells which it has taken: this holds nothing that
an agent which is started again would miss.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from lorikeet_agent.routing.envoy import Envoy, Seen
from lorikeet_agent.routing.files import Folder, Wanted, WantedFile
from lorikeet_agent.routing.settings import Settings
from lorikeet_api.serving import RouterState
from lorikeet_run import log


@dataclass
class _Leaving:
    """A cluster that the routes no longer name."""

    since: float
    busy: float
    """When requests were last, or might have been, on their way to it."""


class Leader:
    """Does one step at a time."""

    def __init__(self, settings: Settings, envoy: Envoy, now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._envoy = envoy
        self._now = now
        self._file = WantedFile(settings.wanted)
        self._folder = Folder(settings.folder)
        self._wanted: Wanted | None = None
        self._since = 0.0
        self._routed = ""
        self._named: frozenset[str] = frozenset()
        """Clusters that the routes name; empty where another agent has written these, and nobody knows."""
        self._leaving: dict[str, _Leaving] = {}
        self._refusals: dict[str, int] = {}
        self._told: set[str] = set()
        self.rejected = 0
        """How many versions of a file Envoy has refused."""

    @property
    def ready(self) -> bool:
        """Return whether Envoy can be started."""
        return self._folder.complete

    @property
    def settled(self) -> bool:
        """Return whether requests are led as it is wanted."""
        return self._wanted is not None and self._routed == self._folder.routes.version == self._wanted.fingerprint

    def state(self, draining: bool) -> RouterState:
        """Return how the router stands."""
        wanted = self._wanted.fingerprint if self._wanted else ""
        served = sorted(self._folder.clusters)
        refused = any(file.version in self._told for file in self._folder.files)
        return RouterState(wanted=wanted, routed=self._routed, served=served, draining=draining, refused=refused)

    async def turn(self) -> None:
        """Look at the wanted file and at Envoy, and do what can be done now. Raises OSError."""
        changed = self._file.changed()
        if changed is not None:
            self._adopt(changed)
        wanted = self._wanted
        if wanted is None:
            return
        if not self._folder.complete:
            self._begin(wanted)
        if self.settled and self._folder.clusters == wanted.clusters:
            return
        seen = await self._envoy.look()
        if seen is not None:
            self._routed = seen.routes.version
            self._tell_refusals(seen)
        self._add_clusters(wanted, seen)
        if self._folder.routes.version != wanted.fingerprint:
            if self._may_lead(wanted, seen):
                self._lead(wanted)
        elif seen is not None and self.settled:
            self._let_go(wanted, seen)

    def _adopt(self, wanted: Wanted) -> None:
        self._wanted, self._since = wanted, self._now()
        if self._folder.routes.version == wanted.fingerprint:
            self._named = frozenset(wanted.clusters)
        log.event("wanted", fingerprint=wanted.fingerprint, clusters=len(wanted.clusters))

    def _begin(self, wanted: Wanted) -> None:
        """Write what Envoy is started with. None has been yet, so the order does not matter."""
        self._folder.add_static(self._settings.wanted.parent)
        self._folder.write_clusters(wanted.clusters)
        self._lead(wanted)

    def _lead(self, wanted: Wanted) -> None:
        self._folder.routes.write(wanted.routes, wanted.fingerprint)
        self._named = frozenset(wanted.clusters)
        log.event("led", fingerprint=wanted.fingerprint, seconds=self._now() - self._since)

    def _add_clusters(self, wanted: Wanted, seen: Seen | None) -> None:
        """Tell Envoy of the clusters that are wanted, beside those that may have requests: no others can have any."""
        kept = {name: cluster for name, cluster in self._folder.clusters.items() if seen is None or name in seen.known}
        self._folder.write_clusters(kept | wanted.clusters)

    def _may_lead(self, wanted: Wanted, seen: Seen | None) -> bool:
        """Return whether routes may name what is wanted."""
        late = self._now() - self._since >= self._settings.patience_seconds
        if seen is None:
            return late
        if seen.clusters.version != self._folder.files[0].version:
            return False  # not taken yet; or refused, and then routes would name what is not there
        cold = wanted.clusters.keys() - self._named - seen.healthy
        if cold and late:
            log.event("impatient", logging.WARNING, message=f"no healthy host yet: {', '.join(sorted(cold))}")
        return late or not cold

    def _let_go(self, wanted: Wanted, seen: Seen) -> None:
        """Remove clusters to which nothing is on its way any more."""
        now, settings, clusters = self._now(), self._settings, self._folder.clusters
        old = clusters.keys() - wanted.clusters.keys()
        self._leaving = {name: self._leaving.get(name) or _Leaving(now, now) for name in old}
        for name, leaving in self._leaving.items():
            if seen.is_busy(name) or now - leaving.since < settings.arrival_seconds:
                leaving.busy = now
            if now - leaving.busy >= settings.quiet_seconds or now - leaving.since >= settings.leaving_seconds:
                del clusters[name]
                log.event("cluster_removed", cluster=name, busy=seen.is_busy(name))
        self._folder.write_clusters(clusters)

    def _tell_refusals(self, seen: Seen) -> None:
        """Say once of each version that Envoy has refused it. Envoy itself says why in its log, and nowhere else."""
        for file, taken in zip(self._folder.files, (seen.clusters, seen.routes), strict=True):
            more = taken.refused > self._refusals.get(file.name, 0)
            self._refusals[file.name] = taken.refused
            if more and taken.version != file.version and file.version not in self._told:
                self._told.add(file.version)
                self.rejected += 1
                log.event(
                    "rejected", logging.ERROR, file=file.name, message="Envoy refuses it; see Envoy's log for why"
                )
