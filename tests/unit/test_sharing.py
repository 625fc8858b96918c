"""Processes of a test run that share one cluster: `e2e.sharing`."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import pytest

from e2e.sharing import among_others, once


class Test:
    """One that runs until it is told to end, in a thread in a process's place: each opens the files for itself."""

    __test__ = False

    def __init__(self, threads: ThreadPoolExecutor, folder: Path, *, alone: bool) -> None:
        self.runs, self.end = Event(), Event()

        def run() -> None:
            with among_others(folder, alone=alone):
                self.runs.set()
                assert self.end.wait(30)

        self.done: Future[None] = threads.submit(run)


def test_tests_run_beside_each_other_but_one_that_is_to_be_alone_neither_joins_nor_is_overtaken(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        first, second = (Test(threads, tmp_path, alone=False) for _ in range(2))
        assert first.runs.wait(30)
        assert second.runs.wait(30)
        alone = Test(threads, tmp_path, alone=True)
        assert not alone.runs.wait(0.2)
        late = Test(threads, tmp_path, alone=False)
        first.end.set()
        assert not late.runs.wait(0.2)
        second.end.set()
        assert alone.runs.wait(30)
        assert not late.runs.wait(0.2)
        alone.end.set()
        assert late.runs.wait(30)
        late.end.set()
        for each in (first, second, alone, late):
            each.done.result(30)


def test_one_process_makes_what_all_use_and_another_does_if_it_could_not(tmp_path: Path) -> None:
    def make(number: int) -> bool:
        with once(tmp_path, "thing") as first:
            if first and number == 0:
                raise OSError("no space")
        return first

    with pytest.raises(OSError, match="no space"):
        make(0)
    with ThreadPoolExecutor(4) as threads:
        made = [threads.submit(make, number) for number in range(1, 5)]
        wait(made)
    assert sorted(each.result() for each in made) == [False, False, False, True]
