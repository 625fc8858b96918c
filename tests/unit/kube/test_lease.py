"""Who leads: one replica at a time, whatever becomes of the others and of the network between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.errors import NotLeading
from lorikeet_operator.kube.kinds import LEASE, Key
from lorikeet_operator.kube.lease import Lease, LeaseLost, Timing
from lorikeet_operator.kube.throttle import TokenBucket
from tests.unit.kube.api import KINDS, Api, configuration_for
from tests.unit.kube.objects import CONFIG_MAP, config_map
from tests.unit.kube.waiting import until

KEY = Key("ns", "lorikeet")
TIMING = Timing(1.5)


@dataclass
class Replica:
    """A replica with a connection of its own to the one API server."""

    lease: Lease
    client: Client
    connected: asyncio.Event

    def cut_off(self) -> None:
        """From now on its requests reach nobody and get no answer."""
        self.connected.clear()


class Cluster:
    """Replicas over one API server."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.api = Api(kinds=(*KINDS, LEASE))
        self._stack = stack

    async def replica(self, name: str) -> Replica:
        connected = asyncio.Event()
        connected.set()

        async def handle(request: web.Request) -> web.StreamResponse:
            await connected.wait()
            return await self.api.handle(request)

        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handle)
        server = TestServer(app)
        await server.start_server()
        self._stack.push_async_callback(server.close)
        client = Client(configuration_for(server), "tester", TokenBucket(1000, 1000), 60)
        await self._stack.enter_async_context(client)
        return Replica(Lease(client, KEY, name, TIMING), client, connected)

    @property
    def holder(self) -> str:
        return str(self.api.objects[LEASE.path(*KEY)]["spec"]["holderIdentity"])


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack)


async def test_one_of_several_leads(cluster: Cluster) -> None:
    replicas = [await cluster.replica(f"r{number}") for number in range(3)]
    tries = [asyncio.create_task(replica.lease.acquire()) for replica in replicas]
    done, pending = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.1)
    assert [replica.lease.leads for replica in replicas].count(True) == len(done) == 1
    for task in pending:
        task.cancel()


async def test_a_leader_that_renews_stays(cluster: Cluster) -> None:
    first, second = await cluster.replica("a"), await cluster.replica("b")
    await first.lease.acquire()
    holding, waiting = asyncio.create_task(first.lease.hold()), asyncio.create_task(second.lease.acquire())
    await asyncio.sleep(2 * TIMING.duration)
    assert first.lease.leads
    assert not holding.done()
    assert not waiting.done()
    holding.cancel()
    waiting.cancel()


async def test_what_is_given_back_is_taken_at_once(cluster: Cluster) -> None:
    first, second = await cluster.replica("a"), await cluster.replica("b")
    await first.lease.acquire()
    waiting = asyncio.create_task(second.lease.acquire())
    await asyncio.sleep(2 * TIMING.retry)
    await first.lease.release()
    await asyncio.wait_for(waiting, 3 * TIMING.retry)
    assert (cluster.holder, first.lease.leads, second.lease.leads) == ("b", False, True)


async def test_a_leader_that_is_cut_off_stops_before_another_begins(cluster: Cluster) -> None:
    clock = asyncio.get_running_loop().time
    first, second = await cluster.replica("a"), await cluster.replica("b")
    await first.lease.acquire()
    stopped, began = 0.0, 0.0

    async def hold() -> None:
        nonlocal stopped
        with pytest.raises(LeaseLost, match="could not be renewed in time"):
            await first.lease.hold()
        stopped = clock()

    async def wait() -> None:
        nonlocal began
        await second.lease.acquire()
        began = clock()

    tasks = [asyncio.create_task(hold()), asyncio.create_task(wait())]
    await asyncio.sleep(3 * TIMING.retry)
    cut = clock()
    first.cut_off()
    await asyncio.wait_for(asyncio.gather(*tasks), 4 * TIMING.duration)
    assert stopped + 0.2 * TIMING.duration < began < cut + 1.5 * TIMING.duration
    first.connected.set()


async def test_a_leader_that_was_stopped_for_a_while_writes_nothing_more(cluster: Cluster) -> None:
    """Its loop may go on with a write before it gets to look at its Lease."""
    first = await cluster.replica("a")
    fenced = Client(first.client._api.configuration, "tester", TokenBucket(10, 10), 5, lambda: first.lease.leads)
    async with fenced:
        await first.lease.acquire()
        await fenced.create(CONFIG_MAP, config_map("one", version=0))
        await asyncio.sleep(TIMING.renew_deadline)
        before = len(cluster.api.seen)
        with pytest.raises(NotLeading):
            await fenced.create(CONFIG_MAP, config_map("two", version=0))
        assert len(cluster.api.seen) == before
        await fenced.get(CONFIG_MAP, Key("ns", "one"))


async def test_a_lease_that_somebody_took_away_is_lost_at_once(cluster: Cluster) -> None:
    first = await cluster.replica("a")
    await first.lease.acquire()
    held = cluster.api.objects[LEASE.path(*KEY)]
    cluster.api.add(LEASE, {**held, "spec": {**held["spec"], "holderIdentity": "z"}})
    with pytest.raises(LeaseLost, match="was taken away"):
        await asyncio.wait_for(first.lease.hold(), 5)
    assert not first.lease.leads
    await first.lease.release()
    assert cluster.holder == "z"


async def test_a_blink_of_the_api_server_costs_no_lead(cluster: Cluster) -> None:
    first = await cluster.replica("a")
    await first.lease.acquire()
    holding = asyncio.create_task(first.lease.hold())
    cluster.api.answers += [web.Response(status=500, text="busy"), web.Response(status=429, text="busy")]
    await until(lambda: not cluster.api.answers, "both are given out")
    await asyncio.sleep(TIMING.renew_deadline)
    assert first.lease.leads
    assert not holding.done()
    holding.cancel()


async def test_the_same_replica_takes_its_lease_up_again_after_a_crash(cluster: Cluster) -> None:
    await (await cluster.replica("a")).lease.acquire()
    again = await cluster.replica("a")
    await asyncio.wait_for(again.lease.acquire(), TIMING.retry)
    assert again.lease.leads
