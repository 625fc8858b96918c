"""What Envoy's admin interface tells, and is told."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

_SECONDS: Final = 2.0
_IN_FLIGHT: Final = "http.router.downstream_rq_active"
_CLUSTERS: Final = "cluster_manager.cds"
_ROUTES: Final = "http.router.rds.routes"
_ASKED: Final = (
    rf"^({re.escape(_CLUSTERS)}|{re.escape(_ROUTES)})\.(version_text|update_rejected|update_failure)$"
    r"|^cluster\..*\.upstream_rq(_pending)?_active$"
)


@dataclass(frozen=True)
class Taken:
    """How Envoy stands to one of its files."""

    version: str
    """The version that it took last."""
    refused: int
    """How often it has refused one since it started."""


@dataclass(frozen=True)
class Seen:
    """How Envoy stands at one moment."""

    clusters: Taken
    routes: Taken
    known: frozenset[str]
    """Clusters to which a request can be led; one whose hosts were not checked yet is none."""
    healthy: frozenset[str]
    """Those of them that have a healthy host."""
    stats: Mapping[str, Any]

    def is_busy(self, cluster: str) -> bool:
        """Return whether a cluster has requests."""
        prefix = f"cluster.{cluster.replace(':', '_')}.upstream_rq"
        return any(self.stats.get(f"{prefix}{which}_active", 0) for which in ("", "_pending"))


class Gone(Exception):
    """No Envoy is there."""


class Envoy:
    """The Envoy beside this agent."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}"
        self._timeout = aiohttp.ClientTimeout(total=_SECONDS)

    async def look(self) -> Seen | None:
        """Return how Envoy stands; None: it does not answer."""
        try:
            # In this order: the clusters are then those of this version or of a newer one.
            stats = await self._stats(_ASKED)
            clusters = await self._get("/clusters", format="json")
        except (Gone, aiohttp.ClientError, TimeoutError):
            return None
        hosts = {each["name"]: each.get("host_statuses", []) for each in clusters["cluster_statuses"]}
        return Seen(
            clusters=_taken(stats, _CLUSTERS),
            routes=_taken(stats, _ROUTES),
            known=frozenset(hosts),
            healthy=frozenset(name for name, found in hosts.items() if any(map(_is_healthy, found))),
            stats=stats,
        )

    async def is_idle(self) -> bool:
        """Return whether no client waits for an answer. Raises Gone; aiohttp.ClientError, TimeoutError: try again."""
        stats = await self._stats(f"^{re.escape(_IN_FLIGHT)}$")
        return not stats.get(_IN_FLIGHT, 0)

    async def close_connections(self) -> None:
        """Have every answer close its connection from now on. Raises as `is_idle` does."""
        # `/drain_listeners?graceful` would begin with few of them, and come to all only after Envoy's whole drain time.
        try:
            async with self._session.post(f"{self._url}/healthcheck/fail", timeout=self._timeout) as answer:
                answer.raise_for_status()
        except aiohttp.ClientConnectorError as error:
            raise Gone from error

    async def _stats(self, asked: str) -> dict[str, Any]:
        found = await self._get("/stats", format="json", filter=asked)
        return {each["name"]: each["value"] for each in found["stats"] if "name" in each}

    async def _get(self, path: str, **query: str) -> Any:
        try:
            async with self._session.get(self._url + path, params=query, timeout=self._timeout) as answer:
                answer.raise_for_status()
                return await answer.json(content_type=None)
        except aiohttp.ClientConnectorError as error:
            raise Gone from error


def _taken(stats: Mapping[str, Any], prefix: str) -> Taken:
    refused = sum(stats.get(f"{prefix}.{which}", 0) for which in ("update_rejected", "update_failure"))
    return Taken(stats.get(f"{prefix}.version_text", ""), refused)


def _is_healthy(host: Mapping[str, Any]) -> bool:
    told = dict(host.get("health_status", {}))
    return told.pop("eds_health_status", "") == "HEALTHY" and not any(told.values())
