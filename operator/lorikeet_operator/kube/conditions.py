"""Conditions, as Kubernetes' API conventions have them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

ConditionStatus: TypeAlias = Literal["True", "False", "Unknown"]


def timestamp(now: datetime) -> str:
    """Return a time (which must know its zone) as Kubernetes writes it: UTC, whole seconds, `Z`."""
    return now.astimezone(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def set_condition(
    conditions: Sequence[dict[str, Any]],
    type_: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> list[dict[str, Any]]:
    """Return the conditions, sorted by type, with one set.

    `lastTransitionTime` moves only when `status` does; a new reason or message leaves it.
    """
    before = next((each for each in conditions if each["type"] == type_), None)
    same = before is not None and before["status"] == status
    changed = {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before and same else timestamp(now),
    }
    others = [each for each in conditions if each["type"] != type_]
    return sorted([*others, changed], key=lambda each: str(each["type"]))


def condition(conditions: Sequence[dict[str, Any]], type_: str) -> dict[str, Any] | None:
    """Return the condition of a type."""
    return next((each for each in conditions if each["type"] == type_), None)
