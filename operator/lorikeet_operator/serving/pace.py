"""How soon something that is on its way is looked at again."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from lorikeet_operator.kube.kinds import Key

SHIFTING: Final = 0.5
"""Seconds between two looks while something is on its way: agents and routers tell only who asks."""
STARTING: Final = 5.0
"""The same while pods start, of which the watch tells, too; and what the former grow to while nothing moves."""
PART: Final = 1 / 20
"""The next look at what does not move is after this part of the time for which it has not."""


class Pace:
    """Remembers since when a ModelDeployment stands still. One that is forgotten is looked at once too often."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._stands: dict[Key, tuple[object, datetime]] = {}

    def next(self, key: Key, seen: object) -> float:
        """Return the seconds until the next look at one that is on its way; `seen`: all that may move."""
        before, since = self._stands.get(key, (None, self._now()))
        if before != seen:
            since = self._now()
        self._stands[key] = (seen, since)
        return min(max(SHIFTING, (self._now() - since).total_seconds() * PART), STARTING)

    def forget(self, key: Key) -> None:
        """Forget one that has arrived, or is gone."""
        self._stands.pop(key, None)
