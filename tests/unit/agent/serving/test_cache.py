"""A folder of base models that pods fill at the same time, and that none finds half full."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorikeet_agent.serving import cache
from lorikeet_agent.serving.settings import DIGEST
from tests.unit.agent.serving.pod import WEIGHTS, base_digest

PIN = "ab" * 32


def write(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / DIGEST).write_text(json.dumps(base_digest().to_wire()))


def never(folder: Path) -> None:
    raise AssertionError("it is there")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_fetched_once(tmp_path: Path) -> None:
    cache.provide(tmp_path / "cache", PIN, write)
    cache.provide(tmp_path / "cache", PIN, never)
    assert names(tmp_path / "cache") == [PIN]
    assert (tmp_path / "cache" / PIN / "model.safetensors").read_bytes() == WEIGHTS


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        write(folder)
        raise OSError("the store is away")

    with pytest.raises(OSError, match="away"):
        cache.provide(tmp_path, PIN, fails)
    assert names(tmp_path) == []


def test_the_one_who_is_faster_is_taken(tmp_path: Path) -> None:
    def slowly(folder: Path) -> None:
        cache.provide(tmp_path, PIN, write)
        write(folder)
        (folder / "late").touch()

    cache.provide(tmp_path, PIN, slowly)
    assert names(tmp_path) == [PIN]
    assert not (tmp_path / PIN / "late").exists()


def test_many_pods_at_once_end_with_one_whole_model(tmp_path: Path) -> None:
    pods = 8
    together, errors = threading.Barrier(pods), []

    def fetch(folder: Path) -> None:
        write(folder)
        together.wait(20)

    def pod() -> None:
        try:
            cache.provide(tmp_path, PIN, fetch)
        except BaseException as error:  # noqa: BLE001 - of another thread
            errors.append(error)

    threads = [threading.Thread(target=pod) for _ in range(pods)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert names(tmp_path) == [PIN]
    assert cache.is_complete(tmp_path / PIN)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / DIGEST).unlink(),
        lambda folder: (folder / DIGEST).write_text("{"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
)
def test_what_is_not_whole_is_exchanged(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    cache.provide(tmp_path, PIN, write)
    damage(tmp_path / PIN)
    cache.provide(tmp_path, PIN, write)
    assert cache.is_complete(tmp_path / PIN)
    assert names(tmp_path) == [PIN]


def test_what_a_pod_that_is_gone_has_begun_is_removed_after_a_day(tmp_path: Path) -> None:
    long_ago = time.time() - cache.ABANDONED_SECONDS - 60
    for name in (f".{PIN}-00000000", f".{PIN}-11111111", f".{PIN}-22222222", ".snapshot-of-yesterday"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"begun")
        if name != f".{PIN}-11111111":
            os.utime(tmp_path / name / "model.safetensors", (long_ago, long_ago))
        os.utime(tmp_path / name, (long_ago, long_ago))
    os.utime(tmp_path / f".{PIN}-22222222")
    cache.provide(tmp_path, PIN, write)
    assert names(tmp_path) == [f".{PIN}-11111111", f".{PIN}-22222222", ".snapshot-of-yesterday", PIN]
