"""One thing to say of a resource: what its conditions are made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Whether something holds, with the reason and what there is to know."""

    holds: bool
    reason: str
    message: str
