"""Writes progress into the status: the newest of each job, not too often, and never too much of it."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from lorikeet_api.conditions import FINAL
from lorikeet_api.progress import Progress
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.errors import ApiError, Conflict, NotFound, Unavailable
from lorikeet_operator.kube.kinds import Key, Object, uid_of
from lorikeet_operator.kube.writer import Writer
from lorikeet_operator.progress.report import after, merged

_log = logging.getLogger(__name__)

INTERVAL: Final = 5.0
"""Seconds between two writes for one job."""
_TURN: Final = 0.5
_TRIES: Final = 5


class Job(NamedTuple):
    """One life of a FineTuneJob: a namesake that is made after it has a uid of its own."""

    key: Key
    uid: str


class Board:
    """What jobs have told and is not written yet; the client's rate limit stretches the interval where it is much."""

    def __init__(self, cache: Cache, writer: Writer, now: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._writer = writer
        self._now = now
        self._waiting: dict[Job, Progress] = {}
        self._written: dict[Job, float] = {}
        self._ending: set[Job] = set()

    def put(self, job: Job, news: Progress) -> None:
        """Take in news of a job: they are written by `run`."""
        self._waiting[job] = after(self._waiting.get(job), news)

    async def write(self, job: Job, news: Progress) -> None:
        """Write at once. Raises ApiError; NotFound also if the job has ended, Unavailable if that is under way."""
        if job in self._ending:
            raise Unavailable(0, "Busy", f"the end of {job.key} is being written already")
        self.put(job, news)
        self._ending.add(job)
        try:
            await self._write(job)
        finally:
            self._ending.discard(job)

    async def turn(self) -> None:
        """Write what is due."""
        now = self._now()
        await self._write_all([job for job in self._waiting if now - self._written.get(job, -INTERVAL) >= INTERVAL])
        self._written = {job: at for job, at in self._written.items() if self._now() - at < INTERVAL}

    async def flush(self) -> None:
        """Write all that waits, once."""
        await self._write_all(list(self._waiting))

    async def _write_all(self, due: list[Job]) -> None:
        for job in due:
            try:
                await self._write(job)
            except NotFound:
                continue
            except ApiError as error:
                _log.warning("the progress of %s could not be written, it is tried again: %s", job.key, error)
                self._written[job] = self._now()
            except Exception:  # noqa: BLE001  one odd job must not hold up all the others
                _log.exception("the progress of %s cannot be written", job.key)
                self._waiting.pop(job, None)

    async def _write(self, job: Job) -> None:
        """Write what waits of a job; it waits on if that fails, unless the job is gone or has ended."""
        if (news := self._waiting.pop(job, None)) is None:
            return
        try:
            await self._merge(job, news)
        except NotFound:
            raise
        except BaseException:
            self._waiting[job] = after(news, self._waiting.get(job, news))
            raise
        self._written[job] = self._now()

    async def _merge(self, job: Job, news: Progress) -> None:
        for tries in range(1, _TRIES + 1):
            body = self._cache.get(FINETUNEJOB, job.key)
            if body is None or uid_of(body) != job.uid or has_ended(body):
                raise NotFound(404, "NotFound", f"FineTuneJob {job.key} is gone or has ended")
            held = (body.get("status") or {}).get("progress")
            progress = merged(None if held is None else Progress.model_validate(held), news)
            if progress is None:
                return
            try:
                status = {"progress": progress.to_wire()}
                await self._writer.write_status(FINETUNEJOB, body, status, ours=lambda name: name == "progress")
                return
            except Conflict:
                # The reconciler or another replica was faster; the cache has its version now.
                if tries == _TRIES:
                    raise

    async def run(self) -> None:
        """Write what comes, for ever."""
        while True:
            await self.turn()
            await asyncio.sleep(_TURN)


def has_ended(body: Object) -> bool:
    """Return whether a FineTuneJob's end is written: what is told after it changes nothing."""
    return (body.get("status") or {}).get("phase") in FINAL
