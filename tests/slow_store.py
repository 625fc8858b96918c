"""A store that takes bytes slowly: a TCP proxy before the real one, whose uploads share a rate."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lorikeet_api.contract import StorageAccess
from tests.s3 import S3Server

_CHUNK = 16 << 10


class SlowStore:
    """A proxy on a loopback port. `rate` in bytes per second may be changed at any time; None is no limit."""

    def __init__(self, server: S3Server, rate: float | None) -> None:
        self.rate = rate
        self.received = 0
        """Bytes that clients have sent."""
        self._target = server.port
        self._free_at = 0.0
        self.access = StorageAccess()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        async with await asyncio.start_server(self._connect, "127.0.0.1", 0) as server:
            self.access = StorageAccess(endpoint=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            ready.set()
            await stop.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, downstream = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._copy(reader, downstream, limited=True), self._copy(upstream, writer, limited=False))

    async def _copy(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, limited: bool) -> None:
        try:
            while data := await source.read(_CHUNK):
                if limited:
                    self.received += len(data)
                    await self._wait_for(len(data))
                sink.write(data)
                await sink.drain()
        except OSError:
            pass  # one of the two is gone
        finally:
            sink.close()

    async def _wait_for(self, size: int) -> None:
        """Take `size` bytes' share of the rate, after those that were promised before."""
        if self.rate is None:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + size / self.rate
        await asyncio.sleep(self._free_at - now)


@contextmanager
def slow_store(server: S3Server, rate: float | None) -> Iterator[SlowStore]:
    """Run a proxy before `server` in a thread."""
    store = SlowStore(server, rate)
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(store.serve(ready, stop)), daemon=True)
    thread.start()
    assert ready.wait(10)
    yield store
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
