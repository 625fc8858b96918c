"""From one wanted file to the next, through a real Envoy."""

import asyncio
import json
import time
from pathlib import Path
from typing import cast

import pytest

from lorikeet_agent.routing.envoy import Envoy, Seen, Taken
from lorikeet_agent.routing.leader import Leader
from lorikeet_operator.serving.router import Route, Variant
from tests.unit.agent.routing.pod import MODEL, asking, files_in, led, pod_in, running, seconds_since
from tests.unit.serving.envoy import LOCAL, eventually

FILES = ["bootstrap.json", "clusters.json", "listeners.json", "routes.json"]


async def test_envoy_is_started_once_all_that_it_reads_is_there(tmp_path: Path) -> None:
    async with pod_in(tmp_path) as pod:
        pod.start_agent()

        async def answers() -> bool:
            return (await pod.get("/healthz"))[0] == 503

        await eventually(answers)
        state = await pod.state()
        assert (state.wanted, state.routed, state.served) == ("", "", [])
        listeners = tmp_path / "config" / "listeners.json"
        listeners.rename(tmp_path / "listeners.json")
        wanted = pod.want(led(a=1))
        await pod.until_wanted(wanted)
        assert (await pod.get("/healthz"))[0] == 503
        (tmp_path / "listeners.json").rename(listeners)
        await pod.until_healthy()
        assert sorted(files_in(pod.folder)) == FILES
        assert (await pod.state()).routed == ""
        assert "lorikeet_router_settled 0.0" in await pod.metrics()
        pod.engine.loaded.add("a-1")
        await pod.start_envoy()
        await pod.until_routed(wanted)
        await pod.router.until(MODEL)
        assert (await pod.state()).served == ["a-1"]
        told = await pod.metrics()
    for line in ("lorikeet_router_settled 1.0", "lorikeet_router_clusters 1.0", "lorikeet_router_rejected_total 0.0"):
        assert line in told


async def test_weights_change_at_once_though_a_cluster_is_unhealthy(tmp_path: Path) -> None:
    took = []
    async with running(tmp_path, led(a=1, b=0, sick=0), "a-1", "b-1") as pod:
        before = files_in(pod.folder)
        for a, b in ((0, 1), (1, 0), (0, 1)):
            variant = "a" if a else "b"

            async def is_led(variant: str = variant) -> bool:
                return (await pod.router.ask(MODEL))[2]["x-lorikeet-variant"] == variant

            start = time.monotonic()
            await pod.until_routed(pod.want(led(a=a, b=b, sick=0)))
            await eventually(is_led)
            took.append(seconds_since(start))
        after = files_in(pod.folder)
    assert min(took) < 1  # one of them, on a busy machine
    assert {name for name in after if after[name] != before[name]} == {"routes.json"}


async def test_a_new_revision_gets_requests_once_healthy_and_the_old_one_ends_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod:
        stream = asyncio.create_task(pod.router.send(b'{"model": "support", "stream": true}'))

        async def streams() -> bool:
            return len(pod.engine.seen) >= 2

        await eventually(streams)
        first = (await pod.state()).routed
        async with asking(pod) as asker:
            wanted = pod.want(led(b=1))
            await pod.until_served("a-1", "b-1")
            await pod.until_known("b-1")
            await asker.until(200)
            state = await pod.state()
            assert (state.wanted, state.routed) == (wanted, first)
            assert set(asker.answers) == {(200, "a")}
            pod.engine.loaded.add("b-1")
            await pod.until_routed(wanted)
            await asker.until(200)
            assert set(asker.answers[-100:]) == {(200, "b")}
            # Longer than arrival and quiet together: only the stream keeps it.
            start = time.monotonic()
            while seconds_since(start) < 2:
                assert (await pod.state()).served == ["a-1", "b-1"]
                await asker.until(1)
            assert not stream.done()
            pod.engine.first_half_arrived.set()
            assert (await stream)[0] == 200
            await pod.until_served("b-1")
            await asker.until(100)
        assert asker.statuses == {200}
        clusters = json.loads((pod.folder / "clusters.json").read_text())["resources"]
        assert [cluster["name"] for cluster in clusters] == ["b-1"]


async def test_a_request_that_arrives_slowly_finds_the_cluster_of_its_routes(tmp_path: Path) -> None:
    """Envoy leads a request by the routes that held when it began."""
    async with running(tmp_path, led(a=1), "a-1", "b-1", arrival_seconds=6) as pod:
        reader, writer = await asyncio.open_connection(LOCAL, int(pod.router.url.rpartition(":")[2]))
        body = b'{"model": "support"}'
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        in_flight = pod.router.admin + "/stats?filter=http.router.downstream_rq_active$"

        async def has_begun() -> bool:
            async with pod.session.get(in_flight) as answer:
                return (await answer.text()).strip().endswith(": 1")

        await eventually(has_begun)
        await pod.until_routed(pod.want(led(b=1)))
        start = time.monotonic()
        while seconds_since(start) < 3:
            assert (await pod.state()).served == ["a-1", "b-1"]
            await asyncio.sleep(0.1)
        writer.write(body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"x-lorikeet-revision: a-1" in answer
        writer.close()
        await pod.until_served("b-1")


async def test_a_cluster_that_never_ends_its_requests_goes_after_a_time(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1", "b-1", leaving_seconds=1) as pod:
        stream = asyncio.create_task(pod.router.send(b'{"model": "support", "stream": true}'))

        async def streams() -> bool:
            return len(pod.engine.seen) >= 2

        await eventually(streams)
        await pod.until_routed(pod.want(led(b=1)))
        await pod.until_served("b-1")
        assert not stream.done()
        pod.engine.first_half_arrived.set()
        assert (await stream)[0] == 200  # Envoy ends even what is on a cluster that it was told to forget


async def test_the_newest_wish_holds_where_another_is_still_waited_for(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod, asking(pod) as asker:
        first = (await pod.state()).routed
        pod.want(led(sick=1))
        await pod.until_served("a-1", "sick-1")
        await pod.until_known("sick-1")
        await pod.until_wanted(pod.want(led(worse=1)))
        await pod.until_known("worse-1")
        last = pod.want(led(c=1))
        await pod.until_wanted(last)
        await asker.until(100)
        assert (await pod.state()).routed == first
        pod.engine.loaded.add("c-1")
        await pod.until_routed(last)
        await asker.until(100)
        await pod.until_served("c-1")
    assert set(asker.answers) == {(200, "a"), (200, "c")}


async def test_a_wish_taken_back_while_it_is_waited_for_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod, asking(pod) as asker:
        before = files_in(pod.folder)["routes.json"]
        pod.want(led(sick=1))
        await pod.until_known("sick-1")
        first = pod.want(led(a=1))
        await pod.until_wanted(first)
        await pod.until_served("a-1")
        assert (await pod.state()).routed == first
        assert files_in(pod.folder)["routes.json"] == before
    assert asker.statuses == {200}


async def test_patience_ends(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1", patience_seconds=2) as pod:
        await pod.until_routed(pod.want(led(sick=1)))
        await pod.router.until_status(503, MODEL)


async def test_an_agent_started_again_goes_on_and_disturbs_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod:
        first = (await pod.state()).routed
        before = files_in(pod.folder)
        await pod.kill_agent()
        for name in ("bootstrap.json", "listeners.json"):
            (tmp_path / "config" / name).write_text("{}")
        pod.start_agent()
        await pod.until_healthy()
        await pod.until_routed(first)
        assert (await pod.state()).served == ["a-1"]
        assert files_in(pod.folder) == before
        async with asking(pod) as asker:
            second = pod.want(led(b=1))
            await pod.until_known("b-1")
            await pod.kill_agent()
            pod.start_agent()
            await pod.until_healthy()
            await pod.until_wanted(second)
            await asker.until(200)
            assert (await pod.state()).served == ["a-1", "b-1"]
            assert (await pod.state()).routed == first
            assert set(asker.answers) == {(200, "a")}
            pod.engine.loaded.add("b-1")
            await pod.until_routed(second)
            await pod.until_served("b-1")
        assert asker.statuses == {200}


async def test_an_envoy_started_again_reads_what_is_there(tmp_path: Path) -> None:
    async with running(tmp_path, led(a=1), "a-1", "b-1") as pod:
        await pod.kill_envoy()
        wanted = pod.want(led(b=1))
        await pod.until_served("a-1", "b-1")
        await pod.start_envoy()
        await pod.until_routed(wanted)
        await pod.until_served("b-1")
        await pod.router.until(MODEL)


@pytest.mark.parametrize("content", [b"{", b'{"clusters": {}}', b'{"clusters": {"resources": [1]}, "routes": {}}'])
async def test_a_file_that_says_nothing_leaves_the_last_one_in_force(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, led(a=1), "a-1") as pod:
        state, before = await pod.state(), files_in(pod.folder)

        async def is_told(times: int) -> bool:
            return [record.message for record in caplog.records].count("wanted_unreadable") == times

        pod.write(content)
        await eventually(lambda: is_told(1))
        pod.settings.wanted.unlink()
        await eventually(lambda: is_told(2))
        assert await pod.state() == state
        assert files_in(pod.folder) == before
        assert (await pod.router.ask(MODEL))[0] == 200
        await pod.until_routed(pod.want(led(a=2)))
        assert await is_told(2)


async def test_what_envoy_refuses_is_told_and_leads_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(tmp_path, led(a=1), "a-1", "b-1", patience_seconds=0.5) as pod, asking(pod) as asker:
        first = (await pod.state()).routed

        async def is_rejected(times: int) -> bool:
            return f"lorikeet_router_rejected_total {times}.0" in await pod.metrics()

        odd = json.loads(pod.content(led(b=1)))
        odd["clusters"]["resources"][0]["lb_policy"] = "CLUSTER_PROVIDED"
        refused = pod.write(json.dumps(odd).encode())
        await eventually(lambda: is_rejected(1))
        start = time.monotonic()
        while seconds_since(start) < 1.5:  # no patience makes routes name what Envoy has refused
            await asker.until(1)
            assert (await pod.state()).routed == first
        odd = json.loads(pod.content(led(a=1)))
        odd["routes"]["resources"][0]["virtual_hosts"][0]["routes"][0]["match"] = {"safe_regex": {"regex": "("}}
        refused = pod.write(json.dumps(odd).encode())
        await eventually(lambda: is_rejected(2))
        await asker.until(200)
        state = await pod.state()
        assert (state.wanted, state.routed, state.refused) == (refused, first, True)
        await pod.until_routed(pod.want(led(b=1)))
        assert not (await pod.state()).refused
        await pod.until_served("b-1")
        assert await is_rejected(2)
    assert asker.statuses == {200}
    told = [record.__dict__["fields"]["file"] for record in caplog.records if record.message == "rejected"]
    assert told == ["clusters.json", "routes.json"]


async def test_names_of_models_with_odd_characters_are_led_and_let_go(tmp_path: Path) -> None:
    def base(served: str) -> list[Route]:
        return [Route(MODEL, [Variant("base", served, 1)])]

    first, second = "hub.io/Qwen:0.5B@main", "hub.io/Qwen:0.6B@main"
    async with running(tmp_path, base(first), first, second) as pod:
        stream = asyncio.create_task(pod.router.send(b'{"model": "support", "stream": true}'))

        async def streams() -> bool:
            return len(pod.engine.seen) >= 2

        await eventually(streams)
        await pod.until_routed(pod.want(base(second)))
        start = time.monotonic()
        while seconds_since(start) < 2:
            assert (await pod.state()).served == [first, second]
            await asyncio.sleep(0.1)
        pod.engine.first_half_arrived.set()
        assert (await stream)[0] == 200
        await pod.until_served(second)


class Told:
    """Stands for an Envoy that says what it is told to."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def look(self) -> Seen | None:
        return self.seen


async def test_a_wish_taken_back_before_envoy_was_asked_again_is_written_again(tmp_path: Path) -> None:
    async with pod_in(tmp_path) as pod:
        first = pod.want(led(a=1, b=0))
        leader = Leader(pod.settings, cast(Envoy, Told(Seen(Taken("", 0), Taken("", 0), frozenset(), frozenset(), {}))))

        def written() -> dict[str, str]:
            return {name: json.loads((pod.folder / name).read_text())["version_info"] for name in FILES[1::2]}

        await leader.turn()
        known = frozenset({"a-1", "b-1"})
        seen = Seen(Taken(written()["clusters.json"], 0), Taken(first, 0), known, known, {})
        leader = Leader(pod.settings, cast(Envoy, Told(seen)))
        await leader.turn()
        assert leader.settled
        second = pod.want(led(a=0, b=1))
        await leader.turn()
        assert written()["routes.json"] == second
        pod.want(led(a=1, b=0))
        await leader.turn()
        assert written()["routes.json"] == first
