"""A store that is away for a while."""

import pytest

from lorikeet_run.patience import patiently
from lorikeet_storage.errors import StorageError


class Store:
    """Fails so often, then answers; its clock moves only in pauses."""

    def __init__(self, failures: int, *, retryable: bool = True) -> None:
        self.failures, self.retryable, self.calls, self.time = failures, retryable, 0, 0.0

    def call(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise StorageError("StorageUnreachable", "away", retryable=self.retryable)
        return "done"

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def wait(self, seconds: float) -> str:
        return patiently(self.call, seconds, sleep=self.sleep, now=lambda: self.time)


def test_it_is_asked_again_until_it_answers() -> None:
    store = Store(5)
    assert store.wait(60) == "done"
    assert store.time == 0.5 + 1 + 2 + 4 + 8


def test_patience_ends() -> None:
    store = Store(10**6)
    with pytest.raises(StorageError, match="away"):
        store.wait(60)
    assert 45 < store.time <= 60


def test_what_waiting_does_not_change_is_told_at_once() -> None:
    store = Store(1, retryable=False)
    with pytest.raises(StorageError, match="away"):
        store.wait(60)
    assert store.time == 0


def test_the_time_before_the_first_failure_does_not_count() -> None:
    store = Store(1)
    store.time = 700.0

    def call() -> str:
        store.time += 700  # an upload that was at it for long
        return store.call()

    assert patiently(call, 600, sleep=store.sleep, now=lambda: store.time) == "done"
