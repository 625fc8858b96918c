"""What the kubelet waits for before it stops Envoy, and how the agent itself ends."""

import asyncio
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from lorikeet_agent.routing.drain import Drain
from lorikeet_agent.routing.envoy import Envoy
from lorikeet_agent.routing.settings import Settings
from lorikeet_api.contract import EXIT_BAD_REQUEST
from tests.unit.agent.routing.pod import MODEL, led, pod_in, running, seconds_since
from tests.unit.serving.envoy import eventually, free_port

STREAM = b'{"model": "support", "stream": true}'


async def test_only_who_knows_the_secret_drains(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod:
        assert (await pod.get("/drain"))[0] == 403
        assert await pod.drain("other") == 403
        assert await pod.drain("\u00e9") == 403
        assert not (await pod.state()).draining
        assert (await pod.router.ask(MODEL))[2].get("Connection") is None


async def test_an_idle_router_is_drained_soon(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod:
        async with asyncio.timeout(10):  # far below the 60 seconds that it may take
            assert await pod.drain() == 200


async def test_requests_in_flight_end_before_the_answer(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod:
        stream = asyncio.create_task(pod.router.send(STREAM))

        async def streams() -> bool:
            return len(pod.engine.seen) >= 2

        await eventually(streams)
        drained = asyncio.create_task(pod.drain())

        async def answers_close() -> bool:
            status, _, headers = await pod.router.ask(MODEL)
            assert status == 200
            return headers.get("Connection") == "close"

        await eventually(answers_close)
        for _ in range(20):
            assert await answers_close()
        assert (await pod.state()).draining
        start = time.monotonic()
        while seconds_since(start) < 1.5:
            assert not drained.done()
            await asyncio.sleep(0.05)
        pod.engine.first_half_arrived.set()
        await asyncio.wait([stream, drained], return_when=asyncio.FIRST_COMPLETED)
        assert not drained.done()
        assert (await stream)[0] == 200
        assert await drained == 200


async def test_a_drain_ends_with_its_time_or_with_envoy(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1", drain_seconds=1) as pod:
        stream = asyncio.create_task(pod.router.send(STREAM))

        async def streams() -> bool:
            return len(pod.engine.seen) >= 2

        await eventually(streams)
        async with asyncio.timeout(10):
            assert await pod.drain() == 200
        assert not stream.done()
        await pod.kill_agent()
        pod.start_agent(drain_seconds=60)
        await pod.until_healthy()
        drained = asyncio.create_task(pod.drain())
        await pod.kill_envoy()
        await asyncio.wait([stream])
        assert stream.exception() is not None
        async with asyncio.timeout(10):
            assert await drained == 200


class HungEnvoy(Envoy):
    """Answers nothing, and is given ten seconds each time."""

    now = 1000.0

    async def close_connections(self) -> None:
        self.now += 10.0
        raise TimeoutError


async def test_an_envoy_that_hangs_is_not_waited_for_to_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lorikeet")
    async with aiohttp.ClientSession() as session:
        envoy = HungEnvoy(session, 1)
        await Drain(Settings("s3cret", 300, grace_seconds=0.0), envoy, now=lambda: envoy.now).run()
    assert caplog.records[-1].__dict__["fields"]["message"] == "Envoy has answered nothing for 90 s"
    assert envoy.now == 1090.0


async def test_settings_come_from_the_environment() -> None:
    told = {"LORIKEET_DRAIN": "x", "LORIKEET_DRAIN_SECONDS": "600"}
    assert Settings.read(told) == Settings("x", 600)
    assert Settings.read(told | {"LORIKEET_ADMIN_PORT": "19901"}).admin_port == 19901


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"LORIKEET_DRAIN": ""}, "LORIKEET_DRAIN is missing"),
        ({"LORIKEET_DRAIN_SECONDS": ""}, "LORIKEET_DRAIN_SECONDS must be a whole number"),
        ({"LORIKEET_DRAIN_SECONDS": "1.5"}, "LORIKEET_DRAIN_SECONDS must be a whole number"),
        ({"LORIKEET_ADMIN_PORT": "70000"}, "LORIKEET_ADMIN_PORT must be a whole number from 1 to 65535"),
    ],
)
def test_settings_that_are_wrong_are_told(changes: dict[str, str], words: str) -> None:
    environment = {"LORIKEET_DRAIN": "x", "LORIKEET_DRAIN_SECONDS": "600", **changes}
    command = [sys.executable, "-m", "lorikeet_agent.routing.main"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == EXIT_BAD_REQUEST
    assert words in ended.stdout


async def test_sigterm_ends_the_agent_though_a_drain_is_running(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lorikeet_agent.routing.main import run, Settings;"
        "sys.exit(run(Settings('s3cret', 60, port=int(sys.argv[1]), wanted=Path(sys.argv[2], 'wanted.json'),"
        " folder=Path(sys.argv[2]))))"
    )
    async with pod_in(tmp_path, port=free_port()) as pod:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(pod.settings.port), str(tmp_path)
        )

        async def answers() -> bool:
            return (await pod.get("/healthz"))[0] == 503

        await eventually(answers)
        drained = asyncio.create_task(pod.drain())

        async def is_draining() -> bool:
            return (await pod.state()).draining

        await eventually(is_draining)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await process.wait() == 0
        await asyncio.wait([drained])
        drained.exception()
