"""cluster.json: what a running cluster is, for people, tests and ``down``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from e2e.cluster.paths import State, write_atomically
from e2e.cluster.process import ProcessRef


@dataclass(frozen=True)
class Record:
    """Addresses, credentials and processes of one cluster."""

    id: str
    slot: int
    api: str
    node: str
    node_address: str
    host_address: str
    pods: str
    services: str
    registry: str
    s3_url: str
    s3_url_in_cluster: str
    s3_access_key: str
    s3_secret_key: str
    link: str
    cgroup: str
    volumes: str
    processes: tuple[ProcessRef, ...]
    """The namespace's first process, and the one outside that waits for it."""

    def save(self, state: State) -> None:
        """Write it; it holds credentials, so for root's eyes only."""
        write_atomically(state.record, json.dumps(asdict(self), indent=1) + "\n", mode=0o600)

    @classmethod
    def load(cls, state: State) -> Record | None:
        """Read it; None if there is none, or only half of one."""
        try:
            data = json.loads(state.record.read_text())
            data["processes"] = tuple(ProcessRef(**p) for p in data["processes"])
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError):
            return None
