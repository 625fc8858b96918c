import asyncio
from collections.abc import AsyncIterator

import pytest

from lorikeet_operator import metrics
from lorikeet_operator.kube.errors import Conflict, TooManyRequests
from lorikeet_operator.kube.kinds import Key
from lorikeet_operator.kube.queue import KeyedQueue, Requeue
from tests.unit.kube.clock import FakeClock
from tests.unit.kube.stubborn import stubborn
from tests.unit.kube.waiting import until

A, B, C = Key("ns", "a"), Key("ns", "b"), Key("ns", "c")


class Bench:
    """A queue whose reconciles wait to be let go, one by one."""

    def __init__(self, name: str, workers: int = 2) -> None:
        self.clock = FakeClock()
        self.started: list[Key] = []
        self.gates: dict[Key, asyncio.Future[Requeue | None]] = {}
        self.queue = KeyedQueue(
            name, self.reconcile, workers=workers, timeout=120, clock=self.clock, jitter=lambda low, high: high
        )

    async def reconcile(self, key: Key) -> Requeue | None:
        assert key not in self.gates, f"two workers on {key}"
        self.started.append(key)
        self.gates[key] = asyncio.get_running_loop().create_future()
        try:
            return await self.gates[key]
        finally:
            del self.gates[key]

    async def finish(self, key: Key, result: Requeue | Exception | None = None) -> None:
        await until(lambda: key in self.gates, f"{key} is being reconciled")
        gate = self.gates[key]
        if isinstance(result, Exception):
            gate.set_exception(result)
        else:
            gate.set_result(result)
        await until(lambda: self.gates.get(key) is not gate, f"{key} is done")
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def count(self, result: str) -> float:
        return float(metrics.RECONCILES.labels(self.queue.name, result)._value.get())


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    bench = Bench(request.node.name)
    yield bench
    await bench.queue.stop(grace=0)


async def test_a_waiting_key_is_queued_once(bench: Bench) -> None:
    for _ in range(3):
        bench.queue.add(A)
    assert bench.queue.depth == 1
    bench.queue.start()
    await bench.finish(A)
    assert bench.started == [A]
    assert (bench.queue.depth, bench.queue.in_flight) == (0, 0)


async def test_nothing_runs_before_the_start(bench: Bench) -> None:
    bench.queue.add(A)
    await bench.settle()
    assert bench.started == []


async def test_a_key_added_in_flight_runs_once_again_afterwards(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add(A)
    await bench.settle()
    bench.queue.add(A)
    bench.queue.add(A)
    await bench.settle()
    assert bench.started == [A]  # never two workers on one key
    await bench.finish(A)
    assert bench.started == [A, A]
    await bench.finish(A)
    assert bench.started == [A, A]


async def test_no_more_run_than_there_are_workers_and_the_first_come_is_first_served(bench: Bench) -> None:
    bench.queue.start()
    for key in (A, B, C):
        bench.queue.add(key)
    await bench.settle()
    assert bench.started == [A, B]
    bench.clock.advance(7)
    assert bench.queue.oldest_age() == 7
    await bench.finish(B)
    assert bench.started == [A, B, C]
    assert bench.queue.oldest_age() == 0


async def test_errors_come_back_with_pauses_that_double_up_to_five_minutes(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add(A)
    pauses = []
    for _ in range(10):
        await bench.finish(A, RuntimeError("no"))
        due = min(timer.due for timer in bench.clock.timers if not timer.cancelled)
        pauses.append(due - bench.clock.now())
        seen = len(bench.started)
        bench.clock.advance(pauses[-1] - 0.01)
        await bench.settle()
        assert len(bench.started) == seen
        bench.clock.advance(0.01)
        await bench.settle()
        assert len(bench.started) == seen + 1
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    await bench.finish(A)
    bench.queue.add(A)
    await bench.finish(A, RuntimeError("again"))
    due = min(timer.due for timer in bench.clock.timers if not timer.cancelled)
    assert due - bench.clock.now() == 2, "success forgets the failures"


async def test_the_pause_is_jittered(bench: Bench) -> None:
    asked: list[tuple[float, float]] = []

    def jitter(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    bench.queue._jitter = jitter
    bench.queue.start()
    bench.queue.add(A)
    await bench.finish(A, RuntimeError("no"))
    assert asked == [(0.5, 1.0)]
    assert min(timer.due for timer in bench.clock.timers if not timer.cancelled) - bench.clock.now() == 1


async def test_the_server_s_own_wish_for_a_pause_is_kept(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add(A)
    await bench.finish(A, TooManyRequests(429, "TooManyRequests", "slow down", retry_after=40))
    bench.clock.advance(39)
    await bench.settle()
    assert bench.started == [A]
    bench.clock.advance(1)
    await bench.settle()
    assert bench.started == [A, A]


async def test_a_requeue_comes_after_its_time_and_an_event_before_it(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add(A)
    await bench.finish(A, Requeue(60))
    bench.clock.advance(10)
    bench.queue.add(A)
    await bench.finish(A, Requeue(60))
    bench.clock.advance(55)  # 65 s after the first: its timer is void, the second decides
    await bench.settle()
    assert bench.started == [A, A]
    bench.clock.advance(5)
    await bench.settle()
    assert bench.started == [A, A, A]


async def test_the_earliest_of_several_delays_wins(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add_after(A, 50)
    bench.queue.add_after(A, 5)
    bench.queue.add_after(A, 20)
    bench.clock.advance(5)
    await bench.finish(A)
    bench.clock.advance(100)
    await bench.settle()
    assert bench.started == [A]


async def test_a_reconcile_that_hangs_is_cancelled_and_comes_back(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add(A)
    await bench.settle()
    bench.clock.advance(119)
    await bench.settle()
    assert bench.queue.in_flight == 1
    bench.clock.advance(1)
    await bench.settle()
    assert bench.queue.in_flight == 0
    assert bench.count("stuck") == 1
    assert bench.queue.stuck() == []
    bench.clock.advance(2)
    await bench.settle()
    assert bench.started == [A, A]


async def test_one_that_does_not_even_end_when_cancelled_is_reported(bench: Bench) -> None:
    release = asyncio.Event()
    bench.queue._reconcile = stubborn(release)
    bench.queue.start()
    bench.queue.add(A)
    await bench.settle()
    bench.clock.advance(149)
    await bench.settle()
    assert bench.queue.stuck() == []
    bench.clock.advance(2)
    assert bench.queue.stuck() == [A]
    release.set()
    await until(lambda: bench.queue.in_flight == 0, "the stubborn one ends")


@pytest.mark.parametrize(
    ("outcome", "result"),
    [(None, "ok"), (Requeue(5), "requeue"), (Conflict(409, "Conflict", "moved"), "conflict"), (OSError(), "error")],
)
async def test_outcomes_are_counted(bench: Bench, outcome: Requeue | Exception | None, result: str) -> None:
    bench.queue.start()
    bench.queue.add(A)
    await bench.finish(A, outcome)
    assert bench.count(result) == 1


async def test_stop_lets_a_running_reconcile_end_and_starts_nothing_more(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add(A)
    await bench.settle()
    stopping = asyncio.create_task(bench.queue.stop(grace=30))
    await bench.settle()
    bench.queue.add(A)
    bench.queue.add(B)
    await bench.finish(A)
    assert await stopping is True
    assert bench.started == [A]


async def test_stop_cancels_what_does_not_end_in_time(bench: Bench) -> None:
    bench.queue.start()
    bench.queue.add(A)
    await bench.settle()
    assert await bench.queue.stop(grace=0) is False
    assert bench.gates == {}


async def test_the_queue_s_own_jitter_stays_in_bounds() -> None:
    queue = KeyedQueue("bounds", lambda key: asyncio.sleep(0, None), clock=(clock := FakeClock()))
    for _ in range(50):
        queue._retry(A)
        queue._drop_timer(A)
        queue._failures.clear()
    pauses = [timer.due - clock.now() for timer in clock.timers]
    assert all(1 <= pause <= 2 for pause in pauses)
    assert len(set(pauses)) > 10
