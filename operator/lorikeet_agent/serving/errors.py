"""Why an adapter is not there: every failure on its way, with the cause and the next step."""

import errno
import traceback
from typing import Final

from lorikeet_api.serving import AdapterReason
from lorikeet_engines import EngineError
from lorikeet_storage import StorageError
from lorikeet_storage.adapter import Flaw
from lorikeet_storage.errors import Invalid, Missing

_FIELD: Final = "spec.adapters[].from.uri"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class AdapterError(Exception):
    """An adapter cannot be had; `retryable` says whether that may pass by itself."""

    def __init__(self, reason: AdapterReason, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason: AdapterReason = reason
        self.message = message
        self.retryable = retryable


def failure_of(error: Exception) -> AdapterError:
    """Return any failure as the one that is told of the adapter."""
    if isinstance(error, AdapterError):
        return error
    if is_full(error):
        return AdapterError(
            "OutOfDisk",
            f"no room is left for the adapter in the pod's scratch volume ({error.__cause__ or error}): raise"
            " compute.scratch, or serve fewer adapters",
        )
    if isinstance(error, Flaw):
        return AdapterError(error.kind, error.message)
    if isinstance(error, StorageError):
        # Storage speaks of what it was asked for as a model, which here is the adapter.
        message = error.message.replace("spec.model.uri", _FIELD)
        return AdapterError(_reason(error), message, retryable=error.retryable)
    if isinstance(error, EngineError):
        return AdapterError("EngineRefused", f"{error}; the log of the pod's container engine says more")
    traceback.print_exception(error)
    return AdapterError("InternalError", f"{type(error).__name__}: {error}; the agent's log has the whole trace")


def is_full(error: Exception) -> bool:
    """Return whether a file system had no room, which storage may have said in its words."""
    cause = error.__cause__ if isinstance(error, StorageError) else error
    return isinstance(cause, OSError) and cause.errno in _FULL


def _reason(error: StorageError) -> AdapterReason:
    if isinstance(error, Missing):
        return "ManifestMissing"
    if isinstance(error, Invalid):
        return "FileCorrupt"
    return "StorageUnreachable" if error.reason == "StorageUnreachable" else "StorageRefused"
