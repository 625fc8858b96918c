"""What the agent knows of one adapter."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from lorikeet_api.serving import AdapterReason, AdapterRevision, AdapterState


@dataclass
class Adapter:
    """An adapter that is wanted, or that is still there though it is not. Times are those of a monotonic clock."""

    served: str
    revision: AdapterRevision | None = None
    """Absent: it is not wanted."""
    since: float = 0.0
    """Since when it is wanted."""
    state: Literal["loading", "loaded", "failed"] = "loading"
    reason: AdapterReason | None = None
    message: str = ""
    on_disk: bool = False
    """Whether its files were verified."""
    cold: bool = False
    """Whether this process has loaded it and it has answered nothing yet."""
    size_bytes: int = 0
    fetch_seconds: float = 0.0
    load_seconds: float = 0.0
    failures: Counter[AdapterReason] = field(default_factory=Counter)
    pause: float | None = None
    """Seconds of the last pause, if nothing has succeeded since."""
    retry_at: float = 0.0
    """Nothing is done for it before."""
    task: asyncio.Task[None] | None = None
    """What is being done for it."""

    @property
    def busy(self) -> bool:
        """Return whether something is being done for it."""
        return self.task is not None and not self.task.done()

    def set(
        self, state: Literal["loading", "loaded", "failed"], reason: AdapterReason | None = None, message: str = ""
    ) -> None:
        """Say how it stands."""
        self.state, self.reason, self.message = state, reason, message

    def told(self) -> AdapterState:
        """Return how it stands, for others."""
        return AdapterState(
            served=self.served,
            state=self.state,
            reason=self.reason,
            message=self.message,
            size_bytes=self.size_bytes,
            seconds=round(self.fetch_seconds + self.load_seconds, 3),
        )
