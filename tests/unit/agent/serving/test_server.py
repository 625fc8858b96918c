"""What the agent beside an engine answers, and how a pod is drained."""

import asyncio
from pathlib import Path

import pytest

from lorikeet_api.serving import DRAIN_HEADER
from tests.unit.agent.serving.engine import metrics
from tests.unit.agent.serving.pod import SECRET, Store, pod_in, running

pytestmark = pytest.mark.usefixtures("s3")


async def test_a_name_is_served_once_it_is_loaded(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        await pod.until(revision, "loaded")
        for name, status in ((revision.served, 200), (pod.engine.base, 200), ("sql", 503), ("sql-00000000", 503)):
            assert await pod.status(f"/served/{name}") == status
        await pod.engine.stop()
        await pod.until_status(f"/served/{pod.engine.base}", 503)
        assert await pod.status(f"/served/{revision.served}") == 503


async def test_names_may_be_percent_encoded(store: Store, tmp_path: Path) -> None:
    async with running(tmp_path, store.server.access) as pod:
        await pod.until_status(f"/served/{pod.engine.base}", 200)
        encoded = "".join(f"%{ord(letter):02X}" for letter in pod.engine.base)
        assert await pod.status(f"/served/{encoded}") == 200
        assert await pod.status("/served/a%2Fb%20c%3F") == 503


async def test_the_state_names_what_was_read(store: Store, tmp_path: Path) -> None:
    async with pod_in(tmp_path, store.server.access) as pod:
        pod.start_agent()
        await pod.until_status("/healthz", 200)
        assert (await pod.get("/state"))[1] == '{"wanted": "", "engine": false, "draining": false, "adapters": []}'
        assert await pod.status("/readyz") == 503
        revision = store.publish("sql")
        wanted = pod.want(revision)
        await pod.until_wanted(wanted)
        assert '"sizeBytes"' in (await pod.get("/state"))[1]


async def test_metrics_name_what_is_there_and_nothing_that_is_gone(store: Store, tmp_path: Path) -> None:
    good, bad = store.publish("good"), store.publish("bad", rank=64)
    async with running(tmp_path, store.server.access, [good, bad]) as pod:
        size = (await pod.until(good, "loaded")).size_bytes
        await pod.until(bad, "failed", "RankTooHigh")
        text = (await pod.get("/metrics"))[1]
        assert "lorikeet_agent_engine_up 1.0" in text
        assert f'lorikeet_agent_adapter_state{{served="{good.served}",state="loaded"}} 1.0' in text
        assert f'lorikeet_agent_adapter_state{{served="{bad.served}",state="failed"}} 1.0' in text
        assert f'lorikeet_agent_adapter_bytes{{served="{good.served}"}} {float(size)}' in text
        assert f'lorikeet_agent_adapter_load_seconds{{served="{good.served}"}}' in text
        assert f'lorikeet_agent_adapter_failures_total{{reason="RankTooHigh",served="{bad.served}"}}' in text
        await pod.until_wanted(pod.want(good))
        assert bad.served not in (await pod.get("/metrics"))[1]
        await pod.engine.stop()
        await pod.until(good, "loading")
        assert "lorikeet_agent_engine_up 0.0" in (await pod.get("/metrics"))[1]


async def test_the_engines_metrics_are_passed_on(store: Store, tmp_path: Path) -> None:
    async with running(tmp_path, store.server.access) as pod:
        pod.engine.running = 3
        await pod.until_status("/engine/metrics", 200)
        assert (await pod.get("/engine/metrics"))[1] == metrics(3, 0)
        await pod.engine.stop()
        assert await pod.status("/engine/metrics") == 502


@pytest.mark.parametrize("secret", ["", "guess", SECRET + "x", "\u00e9"])
async def test_nobody_else_drains(store: Store, tmp_path: Path, secret: str) -> None:
    async with running(tmp_path, store.server.access) as pod:
        await pod.until_status("/readyz", 200)
        assert await pod.drain(secret) == 403
        assert await pod.status("/drain") == 403
        assert await pod.status(f"/drain?{DRAIN_HEADER}={SECRET}") == 403
        assert await pod.status("/readyz") == 200


async def test_a_drain_waits_for_requests_in_flight(store: Store, tmp_path: Path) -> None:
    async with running(tmp_path, store.server.access) as pod:
        await pod.until_status("/readyz", 200)
        pod.engine.running = 1
        drain = asyncio.create_task(pod.drain())
        await pod.until_status(f"/served/{pod.engine.base}", 503)
        assert await pod.status("/readyz") == 503
        assert (await pod.state()).draining
        await pod.turns()
        assert not drain.done()
        pod.engine.running = 0
        assert await drain == 200
        await pod.turns()  # the engine is about to be stopped
        assert await pod.status(f"/served/{pod.engine.base}") == 503


async def test_a_drain_gives_routers_time_to_notice(store: Store, tmp_path: Path) -> None:
    async with running(tmp_path, store.server.access, notice_seconds=1.0) as pod:
        await pod.until_status("/readyz", 200)
        start = asyncio.get_running_loop().time()
        assert await pod.drain() == 200
        assert asyncio.get_running_loop().time() - start >= 1.0


async def test_a_drain_ends_with_its_time(store: Store, tmp_path: Path) -> None:
    async with running(tmp_path, store.server.access, drain_seconds=1) as pod:
        await pod.until_status("/readyz", 200)
        pod.engine.running = 1
        assert await pod.drain() == 200


async def test_a_drain_ends_with_the_engine(store: Store, tmp_path: Path) -> None:
    async with running(tmp_path, store.server.access, drain_seconds=3600) as pod:
        await pod.until_status("/readyz", 200)
        pod.engine.running = 1
        drain = asyncio.create_task(pod.drain())
        await pod.until_status("/readyz", 503)
        await pod.engine.stop()
        assert await drain == 200


async def test_an_engine_that_is_started_again_after_a_drain_serves(store: Store, tmp_path: Path) -> None:
    """The kubelet drains an engine, too, that it starts again for its failing probe: the pod stays."""
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        await pod.until(revision, "loaded")
        assert await pod.drain() == 200
        await pod.engine.stop()
        await pod.until(revision, "loading")
        assert (await pod.state()).draining
        await pod.engine.start()
        await pod.until_status(f"/served/{revision.served}", 200)
        await pod.until_status("/readyz", 200)
        assert not (await pod.state()).draining
