"""The one error that this package raises on purpose."""

from __future__ import annotations


class ClusterError(Exception):
    """Something went wrong that a person can act on: the cause, what to do, and evidence if there is any."""

    def __init__(self, cause: str, fix: str, evidence: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.fix = fix
        self.evidence = evidence

    def __str__(self) -> str:
        """Cause, evidence and fix, a paragraph each."""
        parts = [self.cause]
        if self.evidence:
            parts.append("\n".join(f"    {line}" for line in self.evidence.rstrip().splitlines()))
        parts.append(f"What to do: {self.fix}")
        return "\n".join(parts)
