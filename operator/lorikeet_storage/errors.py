"""What can go wrong with storage, as types: every message names the cause and the next step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lorikeet_api.conditions import TrainerReason

Role = Literal["model", "start", "reward", "data", "output"]
"""What the storage is used for; it decides the reason of an absence."""

_MISSING: Final[dict[Role, TrainerReason]] = {
    "model": "ModelNotFound",
    "start": "ModelNotFound",
    "reward": "ModelNotFound",
    "data": "DataNotFound",
    "output": "StorageRefused",
}
_INVALID: Final[dict[Role, TrainerReason]] = {
    "model": "ModelInvalid",
    "start": "ModelInvalid",
    "reward": "ModelInvalid",
    "data": "DataInvalid",
    "output": "OutputConflict",
}
_FIELD: Final[dict[Role, str]] = {
    "model": "spec.model.uri",
    "start": "spec.model.from",
    "reward": "spec.objective.rlhf.rewards[].model",
    "data": "spec.dataset",
    "output": "spec.output.uri",
}


class StorageError(Exception):
    """A failure that storage explains.

    `reason` is the condition's reason, `message` the cause and the next step, `retryable` whether the same
    request may succeed later.
    """

    def __init__(self, reason: TrainerReason, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason: TrainerReason = reason
        self.message = message
        self.retryable = retryable


class Missing(StorageError):
    """Nothing is there."""


class Refused(StorageError):
    """The store is there and says no: credentials, rights, quota."""


class Unreachable(StorageError):
    """The store does not answer, or not as a store does."""


class Invalid(StorageError):
    """Something is there, and it is not what it should be."""


class Conflict(StorageError):
    """Something foreign is in the way."""


@dataclass(frozen=True)
class Place:
    """Where an operation took place: the URI, what it is used for, and the endpoint asked."""

    uri: str
    role: Role
    endpoint: str | None = None
    folder: Path | None = None
    """Where it lies on this machine, if it does."""

    @property
    def field(self) -> str:
        """Field of the FineTuneJob that named the place."""
        return _FIELD[self.role]

    def missing(self, message: str) -> Missing:
        """Return the error for an absence at this place."""
        return Missing(_MISSING[self.role], message)

    def invalid(self, message: str) -> Invalid:
        """Return the error for unusable content at this place."""
        return Invalid(_INVALID[self.role], message)
