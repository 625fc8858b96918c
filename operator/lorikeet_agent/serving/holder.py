"""Brings the engine from the adapters that it serves to those that are wanted, one step of one adapter at a time."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from lorikeet_agent.serving.adapter import Adapter
from lorikeet_agent.serving.engine_http import EngineWatch
from lorikeet_agent.serving.errors import AdapterError, failure_of
from lorikeet_agent.serving.fetch import AdapterFiles
from lorikeet_agent.serving.settings import Settings
from lorikeet_agent.serving.wanted import WantedFile
from lorikeet_api.serving import AdapterRevision
from lorikeet_engines import Engine, EngineError, Http
from lorikeet_run import log

FETCHES: Final = 2
"""Adapters fetched at once: each takes some 50 MiB of memory."""


class Holder:
    """The loop. Whatever fails, fails for one adapter, and is tried again."""

    def __init__(
        self, settings: Settings, engine: Engine, http: Http, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._contract = settings.contract
        self._engine = engine
        self._http = http
        self._now = now
        self._file = WantedFile(settings.wanted)
        self._files = AdapterFiles(settings)
        self._adapters: dict[str, Adapter] = {}
        self._slots = asyncio.Semaphore(FETCHES)
        self._wake = asyncio.Event()
        self._settled = False
        self.engine = EngineWatch(engine, http, settings.fresh_seconds, now)

    @property
    def wanted(self) -> str:
        """Return the fingerprint of what is wanted; empty: nobody has said yet."""
        return self._file.fingerprint

    @property
    def ready(self) -> bool:
        """Return whether the engine has what requests are led to, and has or cannot have what else was wanted at first.

        A pod that is ready may take another one's place: never without an adapter that is in service. What is wanted
        later does not count: one that answers requests stays ready while it loads one adapter more.
        """
        return self.engine.answers and self._settled

    def serves(self, name: str) -> bool:
        """Return whether requests for a name are answered now."""
        if name == self._contract.base:
            return self.engine.answers and name in self.engine.names
        found = self._adapters.get(name)
        return self.engine.answers and found is not None and found.state == "loaded" and found.revision is not None

    def adapters(self) -> list[Adapter]:
        """Return those that are wanted, in the order of their served names."""
        names = sorted({revision.served for revision in self._file.adapters})
        return [self._adapters.get(name) or Adapter(name, message=_NOT_STARTED_WITH) for name in names]

    async def run(self) -> None:
        """Go on for ever."""
        self._files.remove_abandoned()
        self._want(self._contract.adapters)
        self._look()
        try:
            while True:
                begun = self._now()
                try:
                    await self.turn()
                except Exception:  # what is loaded is served all the same
                    logging.getLogger("lorikeet").exception("a turn failed")
                await self._pause(begun + self._settings.turn_seconds)
        finally:
            tasks = [each.task for each in self._adapters.values() if each.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def turn(self) -> None:
        """Ask the engine what it serves, and begin what is to be done for each adapter."""
        # What is changed while the engine answers may not be in the answer yet.
        before = {each.served for each in self._adapters.values() if each.busy}
        heard = await self.engine.look()
        if not self.engine.answers:
            self._settled = False
            for each in self._adapters.values():
                if each.state == "loaded":
                    each.set("loading", message="the engine does not answer")
        on_disk = self._files.names()
        served = self.engine.names - {self._contract.base} if heard and self._contract.hot_loading else frozenset()
        for name in served | on_disk:
            self._adapters.setdefault(name, Adapter(name))
        for each in list(self._adapters.values()):
            if each.served in before or each.busy or self._now() < each.retry_at:
                continue
            if each.revision is not None:
                self._bring(each, heard)
            elif heard and self.wanted:  # else nobody has said yet what is to stay
                self._take_away(each, served, on_disk)
        self._settle()

    def _bring(self, each: Adapter, heard: bool) -> None:
        """Do the next step towards a wanted adapter."""
        if heard and each.served in self.engine.names:
            if each.cold:
                self._start(each, self._warm(each))
            elif each.state != "loaded":
                self._is_loaded(each)
            return
        if each.state == "loaded":
            if not heard:
                return
            log.event("lost", logging.WARNING, adapter=each.served, message="the engine was started again")
            each.set("loading")
            self._settled = False
        if self._contract.hot_loading:
            if not each.on_disk:
                self._start(each, self._fetch(each))
            elif heard:
                self._start(each, self._load(each))

    def _take_away(self, each: Adapter, served: frozenset[str], on_disk: frozenset[str]) -> None:
        """Do the next step towards the absence of an adapter that nobody wants."""
        if each.served in served:
            self._start(each, self._unload(each))
        elif each.served in on_disk:
            self._start(each, self._remove(each))
        else:
            del self._adapters[each.served]

    async def _fetch(self, each: Adapter) -> None:
        async with self._slots:
            if each.revision is None:
                return
            start = self._now()
            await _in_thread(self._files.ensure, each.revision)
        each.fetch_seconds = self._now() - start
        each.size_bytes = self._files.size(each.served)
        each.on_disk = True
        each.set("loading")

    async def _load(self, each: Adapter) -> None:
        start = self._now()
        await self._engine.load(self._http, each.served, str(self._files.folder(each.served)))
        each.load_seconds, each.cold = self._now() - start, True
        await self._warm(each)

    async def _warm(self, each: Adapter) -> None:
        start = self._now()
        await self._engine.warm(self._http, each.served)
        each.load_seconds += self._now() - start
        self._is_loaded(each)

    async def _unload(self, each: Adapter) -> None:
        await self._engine.unload(self._http, each.served)
        log.event("unloaded", adapter=each.served)

    async def _remove(self, each: Adapter) -> None:
        each.on_disk = False
        await _in_thread(self._files.remove, each.served)

    def _is_loaded(self, each: Adapter) -> None:
        each.cold = False
        each.size_bytes = self._files.size(each.served)
        each.set("loaded")
        log.event("loaded", adapter=each.served, bytes=each.size_bytes)

    def _start(self, each: Adapter, step: Coroutine[Any, Any, None]) -> None:
        each.task = asyncio.create_task(self._finish(each, step))

    async def _finish(self, each: Adapter, step: Coroutine[Any, Any, None]) -> None:
        try:
            await step
            each.pause = None
        except (AdapterError, EngineError) as error:
            self._failed(each, failure_of(error))
        except OSError as error:  # the engine's: those of stores and disks come as AdapterError
            self._try_again(each)
            each.set("loading", message=f"{error}; it is tried again")
        except Exception as error:  # noqa: BLE001 - the other adapters go on
            self._failed(each, failure_of(error))
        finally:
            self._wake.set()

    def _failed(self, each: Adapter, error: AdapterError) -> None:
        each.failures[error.reason] += 1
        if (each.reason, each.message) != (error.reason, error.message):
            log.event("failed", logging.WARNING, adapter=each.served, reason=error.reason, message=error.message)
        each.set("loading" if error.retryable else "failed", error.reason, error.message)
        if error.retryable or each.revision is None:
            self._try_again(each)
        else:
            each.retry_at = self._now() + self._settings.failed_seconds

    def _try_again(self, each: Adapter) -> None:
        settings = self._settings
        each.pause = min(2 * each.pause, settings.longest_pause_seconds) if each.pause else settings.pause_seconds
        each.retry_at = self._now() + each.pause

    def _look(self) -> bool:
        """Read the file, and return whether something else is to be done now."""
        if not self._file.changed():
            return False
        if self._contract.hot_loading:
            self._want(self._file.adapters)
        return True

    def _want(self, revisions: Iterable[AdapterRevision]) -> None:
        wanted = {revision.served: revision for revision in revisions}
        for name in wanted.keys() - self._adapters.keys():
            self._adapters[name] = Adapter(name)
        for each in self._adapters.values():
            before, each.revision = each.revision, wanted.get(each.served)
            if before is None and each.revision is not None:
                each.since, each.retry_at, each.pause = self._now(), 0.0, None
                each.set("loading")

    def _settle(self) -> None:
        if not self.engine.answers or not self._file.fingerprint:
            return
        self._settled = self._settled or all(
            each.state == "loaded" or (each.served not in self._file.led and self._does_not_come(each))
            for each in self._adapters.values()
            if each.revision is not None
        )

    def _does_not_come(self, each: Adapter) -> bool:
        """Return whether it is not worth while to wait for an adapter any longer."""
        waited = self._now() - max(each.since, self.engine.since)
        return each.state == "failed" or waited > self._settings.patience_seconds

    async def _pause(self, end: float) -> None:
        """Wait for the next turn: at its time, or at once if something has ended or is wanted."""
        while self._now() < end and not self._wake.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.look_seconds)
            if self._look():
                break
        self._wake.clear()


_NOT_STARTED_WITH: Final = "this pod was started without it: pods that have it take its place, one after the other"


async def _in_thread(call: Callable[..., None], *arguments: Any) -> None:
    """Call what waits for a store or a disk. Raises AdapterError."""
    try:
        await asyncio.to_thread(call, *arguments)
    except Exception as error:
        raise failure_of(error) from error
