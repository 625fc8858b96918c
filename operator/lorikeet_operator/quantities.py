"""Kubernetes' quantities as numbers."""

from kubernetes.utils.quantity import parse_quantity


def whole(quantity: str | int) -> int:
    """Return a quantity such as `1Gi` as a whole number, rounded down. Raises ValueError."""
    return int(parse_quantity(quantity))  # type: ignore[no-untyped-call]
