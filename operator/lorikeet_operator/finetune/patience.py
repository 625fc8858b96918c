"""How long to wait before something is looked at again that no watch would tell (pure)."""

from datetime import datetime
from typing import Final

REFUSED_AGAIN: Final = 30.0
"""Seconds until a refusal that no watch would see the end of (a taken name, a quota) is tried again."""
NOT_STARTED: Final = 5.0
"""Seconds until a Job without a pod, or a pod that a node prepares, is looked at again: an Event may tell why."""
PATIENCE: Final = 120.0
"""What those seconds grow to: a thousand jobs that wait for a quota must not ask all the time."""


def age(began: str | None, now: datetime) -> float:
    """Return the seconds since an RFC 3339 time; 0 without one."""
    return (now - datetime.fromisoformat(began)).total_seconds() if began is not None else 0.0


def look_again(began: str | None, now: datetime, at_least: float = NOT_STARTED) -> float:
    """Return the seconds until what does not start is looked at again: as long as it has waited so far."""
    return min(PATIENCE, max(at_least, age(began, now)))
