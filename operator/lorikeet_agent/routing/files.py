"""The files: what is wanted, and what Envoy reads, each of which is exchanged at once."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from lorikeet_api.contract import canonical_json
from lorikeet_api.serving import RouterWanted, fingerprint
from lorikeet_run import log

STATIC: Final = ("bootstrap.json", "listeners.json")
"""What Envoy reads once, and never again."""
Clusters = dict[str, dict[str, Any]]
"""Clusters by their names."""


@dataclass(frozen=True)
class Wanted:
    """One content of the wanted file."""

    fingerprint: str
    clusters: Clusters
    routes: list[Any]
    """The one route configuration."""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return what the file says. Raises ValueError."""
        said = RouterWanted.model_validate_json(content)
        clusters, routes = said.clusters.get("resources"), said.routes.get("resources")
        if not isinstance(clusters, list) or not isinstance(routes, list):
            raise ValueError("clusters and routes must each have a list of resources")
        return cls(fingerprint(content), _by_name(clusters), routes)


class WantedFile:
    """The wanted file, and what is wrong with it, which is said once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = b""
        self._error = ""

    def changed(self) -> Wanted | None:
        """Return what is wanted from now on; None: the same as before, or nobody can tell."""
        try:
            content = self._path.read_bytes()
            if content == self._content:
                return None
            self._content = content
            wanted = Wanted.parse(content)
        except (OSError, ValueError) as error:
            if str(error) != self._error:
                log.event("wanted_unreadable", logging.ERROR, file=self._path, message=error)
            self._error = str(error)
            return None
        self._error = ""
        return wanted


class Xds:
    """One of the files that Envoy reads whenever it is exchanged; Envoy tells the `version` that it took."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            content = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # cut off where the node lost power
            content = {}
        self.version: str = content.get("version_info", "")
        """Empty: the file is not there yet."""
        self.resources: list[Any] = content.get("resources", [])

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self._path.name

    def write(self, resources: list[Any], version: str | None = None) -> None:
        """Exchange the file; without a version it gets one from its content. Raises OSError."""
        version = version or fingerprint(canonical_json(resources))
        put(self._path, canonical_json({"version_info": version, "resources": resources}))
        self.version, self.resources = version, resources


class Folder:
    """What Envoy reads: it goes on from what is there, since Envoy may be running with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clusters = Xds(path / "clusters.json")
        self.routes = Xds(path / "routes.json")

    @property
    def complete(self) -> bool:
        """Return whether Envoy can be started."""
        return bool(self._clusters.version and self.routes.version) and not self._missing()

    @property
    def files(self) -> tuple[Xds, Xds]:
        """Return the two files of which Envoy tells the version: of clusters, and of routes."""
        return self._clusters, self.routes

    @property
    def clusters(self) -> Clusters:
        """Return the clusters that Envoy is told of."""
        return _by_name(self._clusters.resources)

    def write_clusters(self, clusters: Clusters) -> None:
        """Tell Envoy of clusters, unless they are the same. Raises OSError."""
        resources = [clusters[name] for name in sorted(clusters)]
        if resources != self._clusters.resources or not self._clusters.version:
            self._clusters.write(resources)

    def add_static(self, source: Path) -> None:
        """Copy what Envoy is started with and is not there yet. Raises OSError."""
        for name in self._missing():
            put(self._path / name, (source / name).read_bytes())

    def _missing(self) -> list[str]:
        return [name for name in STATIC if not (self._path / name).exists()]


def put(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all; Envoy notices only such. Raises OSError."""
    new = path.with_name(f".{path.name}")
    new.write_bytes(content)
    new.rename(path)


def _by_name(resources: list[Any]) -> Clusters:
    """Return clusters by their names. Raises ValueError."""
    try:
        return {str(cluster["name"]): cluster for cluster in resources}
    except (KeyError, TypeError):
        raise ValueError("each cluster must be an object with a name") from None
