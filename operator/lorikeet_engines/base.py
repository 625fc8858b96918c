"""What every engine is to the operator and to the agent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lorikeet_api.modeldeployment import EngineChoice


class EngineError(Exception):
    """The engine has refused what it was asked for; the message says what it answered."""


@dataclass(frozen=True)
class Answer:
    """What an engine has answered."""

    status: int
    text: str


class Http(Protocol):
    """Sends a request to the engine of this pod, on loopback."""

    async def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Return the answer. Raises OSError (TimeoutError too) where there is none."""


@dataclass(frozen=True)
class Launch:
    """What an engine is started with."""

    model: str
    """Folder of the base model."""
    base: str
    """The name under which it serves the base model."""
    port: int
    gpus: int
    lora: bool
    """Whether it is to take LoRA adapters."""
    settings: EngineChoice
    """What the user says of it."""
    adapters: Sequence[tuple[str, str]] = ()
    """Served names and folders of the adapters to start with, where it loads none while it runs."""
    guard: str = ""
    """`module.Class` of the ASGI middleware that keeps its admin endpoints for its own pod. (An engine that is no ASGI
    application would have to listen on loopback, behind the agent.)"""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Folders for caches and the like."""


class Engine(Protocol):
    """One kind of engine. The builders are pure; the other methods are called beside a running one."""

    @property
    def name(self) -> str:
        """Its key in `spec.engine`."""

    @property
    def port(self) -> int:
        """Where it listens."""

    @property
    def health_path(self) -> str:
        """Answers 200 once the model is loaded, for probes from anywhere."""

    @property
    def metrics_path(self) -> str:
        """Its metrics, in Prometheus' format."""

    def max_lora_rank(self, settings: EngineChoice) -> int:
        """Return the highest LoRA rank that it takes."""

    def hot_loading(self, settings: EngineChoice) -> bool:
        """Return whether adapters are loaded while it runs. Else they are part of what it is started with."""

    def container(self, launch: Launch) -> dict[str, Any]:
        """Return the `command`, `args` and `env` of its container."""

    def in_flight(self, metrics: str) -> int:
        """Return how many requests it works on or has waiting, as its metrics say. Raises ValueError if they do not."""

    async def served(self, http: Http) -> frozenset[str]:
        """Return the names that it serves now, the base model's among them. Raises OSError and EngineError."""

    async def load(self, http: Http, served: str, folder: str) -> None:
        """Have it serve the adapter in `folder` as `served`; done if it does already. Raises OSError, EngineError."""

    async def unload(self, http: Http, served: str) -> None:
        """Have it forget an adapter; done if it has. Raises OSError, EngineError."""

    async def warm(self, http: Http, served: str) -> None:
        """Have it answer once, so that no user's request is the first. Raises OSError, EngineError."""
