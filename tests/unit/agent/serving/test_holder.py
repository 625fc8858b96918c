"""How an engine comes to hold what is wanted, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lorikeet_agent.serving.settings import DIGEST
from tests.s3 import S3Server, credentials, free_port
from tests.unit.agent.serving.pod import Store, pod_in, running


async def test_what_is_wanted_is_fetched_loaded_and_warm(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        told = await pod.until(revision, "loaded")
        assert pod.engine.calls == [("load", revision.served), ("complete", revision.served)]
        weights = store.manifest(revision).files
        sizes = {file.path: file.size for file in weights}
        taken = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/tokenizer.json")
        assert told.size_bytes == sum(sizes[path] for path in taken)
        assert 0 < told.seconds < 20
        assert (told.reason, told.message) == (None, "")


async def test_an_engine_sees_no_pickle(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        await pod.until(revision, "loaded")
        files = pod.engine.folders[revision.served] - {DIGEST}
        assert files == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}


async def test_what_is_not_wanted_is_unloaded_and_its_files_go(store: Store, tmp_path: Path) -> None:
    kept, dropped = store.publish("kept"), store.publish("dropped")
    async with running(tmp_path, store.server.access, [kept, dropped]) as pod:
        await pod.until(dropped, "loaded")
        await pod.until(kept, "loaded")
        pod.want(kept)
        await pod.until_engine(kept.served)
        await pod.until_folders(kept.served)
        assert [each.served for each in (await pod.state()).adapters] == [kept.served]
        assert (pod.engine.count("load", kept.served), pod.engine.count("unload", kept.served)) == (1, 0)


async def test_an_old_revision_stays_until_it_is_not_wanted(store: Store, tmp_path: Path) -> None:
    old = store.publish("sql")
    async with running(tmp_path, store.server.access, [old]) as pod:
        await pod.until(old, "loaded")
        new = store.publish("sql")
        pod.want(old, new)
        await pod.until(new, "loaded")
        assert await pod.status(f"/served/{old.served}") == 200
        assert pod.engine.count("unload", old.served) == 0
        pod.want(new)
        await pod.until_engine(new.served)
        assert pod.engine.count("load", old.served) == 1


async def test_loading_disturbs_nothing_that_is_loaded(store: Store, tmp_path: Path) -> None:
    first = store.publish("first")
    async with running(tmp_path, store.server.access, [first]) as pod:
        await pod.until_status("/readyz", 200)
        pod.engine.may_load.clear()
        second = store.publish("second")
        pod.want(first, second)
        await pod.until(second, "loading")
        await pod.turns()
        assert await pod.status(f"/served/{first.served}") == 200
        assert await pod.status(f"/served/{second.served}") == 503
        assert await pod.status("/readyz") == 200
        pod.engine.may_load.set()
        await pod.until(second, "loaded")
        assert pod.engine.count("load", second.served) == 1


async def test_one_that_fails_stops_no_other(store: Store, tmp_path: Path) -> None:
    bad, good = store.publish("bad"), store.publish("good")
    store.overwrite(bad, "adapter/adapter_model.safetensors", b"not these")
    async with running(tmp_path, store.server.access, [bad, good]) as pod:
        await pod.until(good, "loaded")
        await pod.until(bad, "failed", "FileCorrupt")
        await pod.until_status("/readyz", 200)


async def test_what_has_failed_is_tried_again_once_it_is_repaired(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    path = "adapter/adapter_model.safetensors"
    sound = store.read(revision, path)
    store.overwrite(revision, path, b"x" * len(sound))
    async with running(tmp_path, store.server.access, [revision]) as pod:
        told = await pod.until(revision, "failed", "FileCorrupt")
        assert path in told.message
        assert pod.engine.calls == []
        assert revision.served not in pod.folders()
        store.overwrite(revision, path, sound)
        assert (await pod.until(revision, "loaded")).message == ""


async def test_what_the_engine_refuses_is_told_in_its_words(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with pod_in(tmp_path, store.server.access) as pod:
        pod.engine.refused[revision.served] = "target module lm_head is not supported"
        await pod.engine.start()
        pod.want(revision)
        pod.start_agent()
        told = await pod.until(revision, "failed", "EngineRefused")
        assert "vLLM answers 400: target module lm_head is not supported" in told.message
        del pod.engine.refused[revision.served]
        await pod.until(revision, "loaded")


async def test_what_the_engine_cannot_answer_for_is_not_served(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with pod_in(tmp_path, store.server.access) as pod:
        pod.engine.broken.add(revision.served)
        await pod.engine.start()
        pod.want(revision)
        pod.start_agent()
        await pod.until(revision, "failed", "EngineRefused")
        await pod.turns()
        assert await pod.status(f"/served/{revision.served}") == 503
        pod.engine.broken.clear()
        await pod.until(revision, "loaded")
        assert pod.engine.count("load", revision.served) == 1


async def test_files_are_fetched_while_the_engine_starts(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with pod_in(tmp_path, store.server.access) as pod:
        pod.want(revision)
        pod.start_agent()
        await pod.until_folders(revision.served)
        await pod.until(revision, "loading")
        state = await pod.state()
        assert (state.engine, await pod.status("/readyz")) == (False, 503)
        await pod.engine.start()
        await pod.until(revision, "loaded")


async def test_an_engine_that_starts_again_gets_its_adapters_from_disk(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        await pod.until(revision, "loaded")
        await pod.engine.stop()
        await pod.until(revision, "loading")
        assert await pod.status(f"/served/{revision.served}") == 503
        store.overwrite(revision, "manifest.json", b"gone")  # nobody asks for it again
        await pod.engine.start()
        await pod.until(revision, "loaded")
        assert pod.engine.count("load", revision.served) == 2
        await pod.until_status("/readyz", 200)


async def test_an_engine_that_starts_again_unseen_gets_its_adapters_too(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        await pod.until(revision, "loaded")
        pod.engine.served.remove(revision.served)
        await pod.until_engine(revision.served)
        await pod.until(revision, "loaded")


async def test_an_engine_that_is_busy_may_miss_an_answer(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision], fresh_seconds=30.0) as pod:
        await pod.until(revision, "loaded")
        pod.engine.may_list.clear()
        await pod.turns(1)  # which it has not answered
        assert await pod.status(f"/served/{revision.served}") == 200
        pod.engine.may_list.set()
        await pod.turns()
        assert pod.engine.count("load", revision.served) == 1


async def test_an_engine_that_hangs_is_not_served_from(store: Store, tmp_path: Path) -> None:
    async with running(tmp_path, store.server.access, fresh_seconds=1.0) as pod:
        await pod.until_status(f"/served/{pod.engine.base}", 200)
        pod.engine.may_list.clear()
        await pod.until_status(f"/served/{pod.engine.base}", 503)
        assert not (await pod.state()).engine
        pod.engine.may_list.set()
        await pod.until_status(f"/served/{pod.engine.base}", 200)


async def test_an_agent_that_starts_again_takes_what_is_there(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        size = (await pod.until(revision, "loaded")).size_bytes
        store.overwrite(revision, "manifest.json", b"gone")
        await pod.restart_agent()
        assert (await pod.until(revision, "loaded")).size_bytes == size
        assert pod.engine.calls == [("load", revision.served), ("complete", revision.served)]
        await pod.until_status("/readyz", 200)


async def test_files_of_an_earlier_agent_are_verified_before_they_are_loaded(store: Store, tmp_path: Path) -> None:
    sound, broken = store.publish("sound"), store.publish("broken")
    async with running(tmp_path, store.server.access, [sound, broken]) as pod:
        await pod.until(sound, "loaded")
        await pod.until(broken, "loaded")
        await pod.kill_agent()
        await pod.engine.stop()
        (pod.settings.adapters / ".broken-part").mkdir()
        (pod.settings.adapters / broken.served / "adapter_model.safetensors").write_bytes(b"bit rot")
        store.overwrite(sound, "manifest.json", b"nobody reads it")
        pod.start_agent()
        await pod.engine.start()
        await pod.until(sound, "loaded")
        await pod.until(broken, "loaded")
        files = (pod.settings.adapters / broken.served / "adapter_model.safetensors").read_bytes()
        assert files == store.read(broken, "adapter/adapter_model.safetensors")
        await pod.until_folders(sound.served, broken.served)


async def test_nothing_is_unloaded_before_it_is_known_what_is_wanted(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        await pod.until(revision, "loaded")
        await pod.kill_agent()
        pod.settings.wanted.unlink()
        pod.start_agent()
        await pod.until_status("/healthz", 200)
        await pod.turns()
        assert ((await pod.state()).wanted, await pod.status("/readyz")) == ("", 503)
        assert pod.engine.count("unload", revision.served) == 0
        assert pod.folders() == [revision.served]
        pod.want()
        await pod.until_engine()
        await pod.until_folders()


@pytest.mark.parametrize("content", [b"{", b'{"adapters": 1}', b"", b"\xff"])
async def test_a_file_that_cannot_be_read_changes_nothing(store: Store, tmp_path: Path, content: bytes) -> None:
    revision = store.publish("sql")
    async with running(tmp_path, store.server.access, [revision]) as pod:
        await pod.until(revision, "loaded")
        before = (await pod.state()).wanted
        pod.write(content)
        await pod.turns()
        assert (await pod.state()).wanted == before
        assert await pod.status(f"/served/{revision.served}") == 200


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with a server of its own, which a test may stop."""
    with (
        S3Server(tmp_path / "s3", port=free_port()) as server,
        credentials(monkeypatch, server),
    ):
        server.client().create_bucket(Bucket="away")
        yield Store(server, "away", tmp_path / "runs")


async def test_a_store_that_is_away_is_waited_for(own_store: Store, tmp_path: Path) -> None:
    server = own_store.server
    here, late = own_store.publish("here"), own_store.publish("late")
    async with running(tmp_path / "pod", server.access, [here], patience_seconds=1.0) as pod:
        await pod.until(here, "loaded")
        await pod.until_status("/readyz", 200)
        server.stop()
        pod.want(here, late)
        told = await pod.until(late, "loading", "StorageUnreachable")
        assert server.endpoint in told.message
        assert await pod.status(f"/served/{here.served}") == 200
        server.start()
        await pod.until(late, "loaded")


async def test_a_pod_is_ready_without_an_adapter_that_does_not_come(own_store: Store, tmp_path: Path) -> None:
    revision = own_store.publish("sql")
    own_store.server.stop()
    async with running(tmp_path / "pod", own_store.server.access, [revision], patience_seconds=4.0) as pod:
        await pod.until(revision, "loading", "StorageUnreachable")
        assert await pod.status("/readyz") == 503
        await pod.until_status("/readyz", 200)
        assert (await pod.until(revision, "loading", "StorageUnreachable")).state == "loading"


async def test_a_pod_takes_no_other_ones_place_without_an_adapter_that_requests_are_led_to(
    own_store: Store, tmp_path: Path
) -> None:
    server = own_store.server
    late, broken = own_store.publish("late"), own_store.publish("broken")
    own_store.overwrite(broken, "adapter/adapter_model.safetensors", b"not these")
    async with pod_in(tmp_path / "pod", server.access, patience_seconds=0.0) as pod:
        await pod.engine.start()
        server.stop()
        pod.want(late, led=[late])
        pod.start_agent()
        await pod.until(late, "loading", "StorageUnreachable")
        await pod.turns()
        assert await pod.status("/readyz") == 503
        server.start()
        await pod.until(late, "loaded")
        await pod.until_status("/readyz", 200)
        await pod.kill_agent()
        pod.want(late, broken, led=[late, broken])
        pod.start_agent()
        await pod.until(broken, "failed", "FileCorrupt")
        await pod.turns()
        assert await pod.status("/readyz") == 503
        assert await pod.status(f"/served/{late.served}") == 200
        pod.want(late, broken, led=[late])
        await pod.until_status("/readyz", 200)


async def test_a_ready_pod_stays_ready_though_requests_are_led_to_an_adapter_that_it_cannot_load(
    store: Store, tmp_path: Path
) -> None:
    here, broken = store.publish("here"), store.publish("broken")
    store.overwrite(broken, "adapter/adapter_model.safetensors", b"not these")
    async with running(tmp_path, store.server.access, [here]) as pod:
        await pod.until_status("/readyz", 200)
        pod.want(here, broken, led=[here, broken])
        await pod.until(broken, "failed", "FileCorrupt")
        await pod.turns()
        assert await pod.status("/readyz") == 200


async def test_an_engine_that_is_started_with_its_adapters_is_told_nothing(store: Store, tmp_path: Path) -> None:
    first, later = store.publish("first"), store.publish("later")
    async with pod_in(tmp_path, store.server.access, hot_loading=False, adapters=[first]) as pod:
        pod.want(first)
        pod.start_agent()
        await pod.until(first, "loading")
        assert await pod.status("/readyz") == 503
        pod.engine.static = (first.served,)
        await pod.engine.start()
        await pod.until(first, "loaded")
        await pod.until_status("/readyz", 200)
        wanted = pod.want(later)
        await pod.until_wanted(wanted)
        told = await pod.until(later, "loading")
        assert "started without it" in told.message
        await pod.turns()
        assert pod.engine.calls == []
        assert await pod.status(f"/served/{first.served}") == 200
        assert await pod.status(f"/served/{later.served}") == 503
        assert await pod.status("/readyz") == 200
