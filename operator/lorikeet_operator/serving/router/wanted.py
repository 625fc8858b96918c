"""What the router is to do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

LED: Final = "x-lorikeet-cluster"
"""Header that the script sets, and by which alone a request gets anywhere; `router.lua` knows it, too."""
ADMIN: Final = "(admin)"
"""Cluster of Envoy's own admin interface."""
Balancing = Literal["LeastRequest", "PrefixHash"]
"""How the engine of a request is chosen: the less busy one of two, or the one that has answered for the same beginning
of a prompt before, whose prefix cache has it, unless that one is much busier than the others."""


@dataclass(frozen=True)
class Variant:
    """Who answers a share of a model's requests."""

    name: str
    served: str
    """The name under which the engine serves it: that of an adapter's revision, or the base model's."""
    weight: int

    def __post_init__(self) -> None:
        """Refuse a name that would not stay one inside a JSON string. Raises ValueError."""
        if json.dumps(self.served) != f'"{self.served}"' or self.served == ADMIN:
            raise ValueError(f"{self.served!r} cannot be the name of a served model")


@dataclass(frozen=True)
class Route:
    """One model as clients know it."""

    model: str
    variants: Sequence[Variant]
    sticky: str | None = None
    """Header whose value keeps its variant."""


@dataclass(frozen=True)
class Engines:
    """Where the engines are, and what says that one of them serves a name."""

    host: str
    """A headless Service, which names those too that are not ready."""
    port: int
    agent_port: int
    """`/served/<name>`, percent-encoded, answers 200 there where the engine can answer for the name."""


@dataclass(frozen=True)
class Limits:
    """What the router bears of one request."""

    max_request_bytes: int = 8 << 20
    idle_timeout_seconds: int = 600
    """Without a byte in either direction, and so also until an answer begins that is not streamed. Once it comes, it
    may take as long as it likes."""
