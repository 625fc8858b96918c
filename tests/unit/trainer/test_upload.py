"""The upload beside training: always the newest, never in training's way, the last one in what is left of the grace."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from lorikeet_run import log
from lorikeet_storage import Checkpoints, StorageError
from lorikeet_trainer.state import Layout, StoredCheckpoint
from lorikeet_trainer.upload import Uploader
from tests.unit.kube.clock import FakeClock


class Store:
    """Takes a hundred bytes a second of the clock; `during` is called after each hundred."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.saved: list[int] = []
        self.pruned: list[int] = []
        self.during: Callable[[int], None] = lambda sent: None

    def save(self, folder: Path, step: int, on_sent: Callable[[int], None]) -> None:
        for sent in range(100, (folder / "weights").stat().st_size + 1, 100):
            self.clock.advance(1)
            self.during(sent)
            on_sent(100)
        self.saved.append(step)

    def prune(self, keep: int) -> None:
        self.pruned.append(keep)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> Store:
    return Store(clock)


@pytest.fixture
def uploader(tmp_path: Path, store: Store, clock: FakeClock) -> Uploader:
    return Uploader(cast(Checkpoints, store), Layout(tmp_path), keep=2, now=clock.now)


def leave(uploader: Uploader, step: int, size: int = 1000) -> None:
    folder = uploader.layout.checkpoints / str(step)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(size))


def finish(uploader: Uploader) -> None:
    uploader.run(lambda seconds: True)


def test_the_newest_is_stored_and_older_ones_are_pruned(uploader: Uploader, store: Store) -> None:
    leave(uploader, 90)
    leave(uploader, 100)
    finish(uploader)
    assert store.saved == [100]
    assert store.pruned == [2]
    assert StoredCheckpoint.read(uploader.layout.stored).step == 100


def test_what_comes_during_an_upload_is_stored_after_it(uploader: Uploader, store: Store) -> None:
    leave(uploader, 10)
    store.during = lambda sent: leave(uploader, 20) if sent == 500 and not store.saved else None
    finish(uploader)
    assert store.saved == [10, 20]


@pytest.mark.parametrize(
    ("under_way", "left", "stored"),
    [(3000, 20, [20]), (1000, 8, [10])],
    ids=["the last one goes before the one under way", "but not where it does not fit: 10 s are needed, 3 s are left"],
)
def test_the_last_one_counts_more(
    uploader: Uploader, store: Store, under_way: int, left: float, stored: list[int]
) -> None:
    leave(uploader, 10, under_way)

    def asked_to_stop(sent: int) -> None:
        if sent == 500 and uploader.deadline is None:
            uploader.hurry(left)
            leave(uploader, 20, 1000)

    store.during = asked_to_stop
    finish(uploader)
    assert store.saved == stored


def test_a_store_that_refuses_costs_the_checkpoint_alone(
    uploader: Uploader, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sent: int) -> None:
        if not store.saved:
            store.during = lambda sent: None
            raise StorageError("StorageRefused", "no right to write")

    told: list[str] = []
    monkeypatch.setattr(log, "event", lambda name, **fields: told.append(name))
    store.during = refuse
    leave(uploader, 10)
    finish(uploader)
    assert (store.saved, told) == ([], ["checkpoint_failed"])
    leave(uploader, 20)
    finish(uploader)
    assert store.saved == [20]
