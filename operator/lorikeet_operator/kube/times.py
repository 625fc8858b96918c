"""Times as Kubernetes writes them."""

from datetime import UTC, datetime


def timestamp(now: datetime) -> str:
    """Return a time (which must know its zone) as UTC, in whole seconds, with `Z`."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
