import asyncio

import aiohttp
import pytest

from lorikeet_operator.kube import probes
from lorikeet_operator.kube.cache import Cache
from lorikeet_operator.kube.kinds import Key
from lorikeet_operator.kube.queue import KeyedQueue
from tests.unit.kube.clock import FakeClock
from tests.unit.kube.objects import CONFIG_MAP
from tests.unit.kube.stubborn import stubborn


@pytest.fixture
def cache(clock: FakeClock) -> Cache:
    cache = Cache(clock.now)
    cache.register(CONFIG_MAP)
    return cache


def test_ready_is_who_has_listed_everything(cache: Cache) -> None:
    assert probes.unready(cache) == ["configmaps is not listed yet"]
    cache.mark_listed(CONFIG_MAP)
    assert probes.unready(cache) == []


def test_lists_that_stay_away_are_a_reason_to_restart(cache: Cache, clock: FakeClock) -> None:
    cache.mark_listed(CONFIG_MAP)
    clock.advance(1800)
    assert probes.unhealthy(cache, [], relist_interval=600) == []
    clock.advance(1)
    assert probes.unhealthy(cache, [], relist_interval=600) == ["configmaps was last listed 1801 s ago"]


async def test_a_reconcile_that_hangs_is_one_too(cache: Cache, clock: FakeClock) -> None:
    release = asyncio.Event()
    queue = KeyedQueue("stubborn", stubborn(release), timeout=10, clock=clock)
    queue.start()
    queue.add(Key("ns", "a"))
    await asyncio.sleep(0)
    clock.advance(41)
    assert probes.unhealthy(cache, [queue], relist_interval=600) == ["the reconcile of ns/a in stubborn hangs"]
    release.set()
    assert await queue.stop(grace=5)


async def test_over_http() -> None:
    reasons: list[str] = []
    server = await probes.serve("127.0.0.1", 0, lambda: reasons, list)
    (address,) = server.addresses
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{address[1]}") as session:
            async with session.get("/healthz") as response:
                assert (response.status, await response.text()) == (200, "ok\n")
            reasons.append("it hangs")
            async with session.get("/healthz") as response:
                assert (response.status, await response.text()) == (503, "it hangs\n")
            async with session.get("/readyz") as response:
                assert response.status == 200
            async with session.get("/metrics") as response:
                text = await response.text()
                assert response.headers["Content-Type"].startswith("text/plain")
                assert "# TYPE lorikeet_reconcile_seconds histogram" in text
                assert "_created" not in text
    finally:
        await server.cleanup()
