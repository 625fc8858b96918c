"""What the agent beside a router is told, and for how long it waits for what."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from lorikeet_api.serving import AGENT_PORT, ROUTER_DIR, ROUTER_WANTED

DRAIN: Final = "LORIKEET_DRAIN"
DRAIN_SECONDS: Final = "LORIKEET_DRAIN_SECONDS"
ADMIN_PORT: Final = "LORIKEET_ADMIN_PORT"


@dataclass(frozen=True)
class Settings:
    """How one agent works. All times are in seconds."""

    drain: str
    """Value of the header that only the kubelet sends."""
    drain_seconds: int
    """How long requests in flight are waited for before Envoy is stopped."""
    admin_port: int = 9901
    """Of Envoy's admin interface, on loopback."""
    port: int = AGENT_PORT
    """Where the agent answers."""
    wanted: Path = Path(ROUTER_WANTED)
    """The wanted file; what Envoy is started with lies beside it."""
    folder: Path = Path(ROUTER_DIR)
    """What Envoy reads."""
    turn_seconds: float = 0.25
    """Between two looks at the wanted file."""
    patience_seconds: float = 30.0
    """After which requests are led to a new cluster though none of its hosts is healthy."""
    arrival_seconds: float = 60.0
    """How long a request may take to arrive (the listener's `request_timeout`). It is led by the routes that held when
    it began, so that for as long a cluster is needed that they name."""
    quiet_seconds: float = 2.0
    """How long a cluster must then have had no request before it is removed."""
    leaving_seconds: float = 3600.0
    """After which a cluster is removed though it has requests."""
    grace_seconds: float = 5.0
    """Until every node has learned that this router takes no new connections."""

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Return what the environment says. Raises ValueError, which names the variable."""
        drain = environment.get(DRAIN, "")
        if not drain:
            raise ValueError(f"{DRAIN} is missing: set it to the value of the header by which the kubelet may drain")
        return cls(
            drain=drain,
            drain_seconds=_number(environment, DRAIN_SECONDS, None, 86400),
            admin_port=_number(environment, ADMIN_PORT, cls.admin_port, 65535),
        )


def _number(environment: Mapping[str, str], name: str, default: int | None, most: int) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ValueError(f"{name} must be a whole number from 1 to {most}, not {text!r}")
    return int(text)
