"""Where the agent beside an engine finds things, and for how long it waits for what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from lorikeet_api.serving import ADAPTERS_DIR, AGENT_PORT, CACHE_DIR, GUARD_DIR, WANTED, EngineContract, model_folder

DIGEST: Final = ".lorikeet.json"
"""In the folder of a base model its SourceDigest, in an adapter's its manifest: written when all else is there."""


@dataclass(frozen=True)
class Settings:
    """How one agent works. All times are in seconds."""

    contract: EngineContract
    """What the pod is."""
    model: Path
    """Folder of the base model."""
    wanted: Path = Path(WANTED)
    """File with the wanted adapters."""
    adapters: Path = Path(ADAPTERS_DIR)
    """Folder of the adapters' folders."""
    guard: Path = Path(GUARD_DIR)
    """Folder of the module that keeps the engine's admin endpoints."""
    cache: Path = Path(CACHE_DIR)
    """Folder of the models that pods share."""
    port: int = AGENT_PORT
    """Where the agent answers."""
    look_seconds: float = 0.25
    """Between two looks at the wanted file."""
    turn_seconds: float = 1.0
    """Between two looks at the engine."""
    fresh_seconds: float = 3.0
    """For how long an answer of the engine counts."""
    pause_seconds: float = 1.0
    """Before what may succeed soon is tried again; twice as long each time."""
    longest_pause_seconds: float = 30.0
    """The longest of these pauses."""
    failed_seconds: float = 60.0
    """Before what has failed for good is tried again: somebody may have repaired the store."""
    patience_seconds: float = 120.0
    """After which the pod is ready though an adapter that no request is led to is not loaded."""
    notice_seconds: float = 4.0
    """Until every router has noticed that this pod takes no new requests."""
    idle_seconds: float = 0.5
    """Between two looks at the requests in flight."""

    @classmethod
    def of(cls, contract: EngineContract) -> Self:
        """Return the settings of a pod."""
        return cls(contract=contract, model=Path(model_folder(contract)))
