"""Writes progress into the status: the newest of each job, not too often, and never too much of it."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from lorikeet_api.progress import Progress
from lorikeet_operator.finetune.reconcile import FINAL, FINETUNEJOB
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.errors import ApiError, Conflict, NotFound
from lorikeet_operator.kube.kinds import Key, Object
from lorikeet_operator.kube.writer import Writer
from lorikeet_operator.progress.report import after, settled

_log = logging.getLogger(__name__)

INTERVAL: Final = 5.0
"""Seconds between two writes for one job."""
_TURN: Final = 0.5
_TRIES: Final = 5


class Board:
    """What jobs have told and is not written yet; the client's rate limit stretches the interval where it is much."""

    def __init__(self, cache: Cache, writer: Writer, now: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._writer = writer
        self._now = now
        self._waiting: dict[Key, Progress] = {}
        self._written: dict[Key, float] = {}

    def put(self, key: Key, news: Progress) -> None:
        """Take in news of a job: they are written by `run`."""
        self._waiting[key] = after(self._waiting.get(key), news)

    async def write(self, key: Key, news: Progress) -> None:
        """Write at once. Raises ApiError; NotFound also if the job has ended."""
        news = after(self._waiting.pop(key, None), news)
        for tries in range(1, _TRIES + 1):
            body = self._cache.get(FINETUNEJOB, key)
            if body is None or has_ended(body):
                raise NotFound(404, "NotFound", f"FineTuneJob {key} is gone or has ended")
            held = (body.get("status") or {}).get("progress")
            progress = settled(None if held is None else Progress.model_validate(held), news)
            if progress is None:
                return
            try:
                status = {"progress": progress.to_wire()}
                await self._writer.write_status(FINETUNEJOB, body, status, ours=lambda name: name == "progress")
            except Conflict:
                # The reconciler or another replica was faster; the cache has its version now.
                if tries == _TRIES:
                    raise
                continue
            self._written[key] = self._now()
            return

    async def turn(self) -> None:
        """Write what is due."""
        due = [key for key in self._waiting if self._now() - self._written.get(key, -INTERVAL) >= INTERVAL]
        for key in due:
            if (news := self._waiting.pop(key, None)) is None:
                continue
            try:
                await self.write(key, news)
            except NotFound:
                continue
            except ApiError as error:
                _log.warning("the progress of %s could not be written, it is tried again: %s", key, error)
                self._waiting[key] = after(news, self._waiting.get(key, news))
                self._written[key] = self._now()
        self._written = {key: at for key, at in self._written.items() if self._now() - at < INTERVAL}

    async def run(self) -> None:
        """Write what comes, for ever."""
        while True:
            try:
                await self.turn()
            except Exception:  # noqa: BLE001  nobody else would notice that all progress stands still
                _log.exception("a turn of the progress of all jobs failed")
            await asyncio.sleep(_TURN)


def has_ended(body: Object) -> bool:
    """Return whether a FineTuneJob's end is written: what is told after it changes nothing."""
    return (body.get("status") or {}).get("phase") in FINAL
