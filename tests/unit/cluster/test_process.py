import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster.process import MARK, ProcessRef, children, find_marked

SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_running_process_is_alive_and_can_be_killed(sleeper: subprocess.Popen[bytes]) -> None:
    ref = ProcessRef.of(sleeper.pid)

    assert ref is not None
    assert ref.alive()
    ref.kill()
    assert sleeper.wait(10) == -signal.SIGKILL
    assert not ref.alive()
    ref.kill()  # a second time is no error


@pytest.mark.parametrize("change", [lambda ref: replace(ref, start=1), lambda ref: replace(ref, boot="of another day")])
def test_another_process_under_the_same_number_is_left_alone(
    sleeper: subprocess.Popen[bytes], change: Callable[[ProcessRef], ProcessRef]
) -> None:
    ref = ProcessRef.of(sleeper.pid)
    assert ref is not None
    stranger = change(ref)

    assert not stranger.alive()
    stranger.kill()

    assert ref.alive()


def test_a_zombie_is_not_alive(sleeper: subprocess.Popen[bytes]) -> None:
    ref = ProcessRef.of(sleeper.pid)
    assert ref is not None
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)

    assert not ref.alive()


def test_children_are_found(sleeper: subprocess.Popen[bytes]) -> None:
    assert sleeper.pid in children(os.getpid())
    assert children(2**22 + 1) == []


def test_a_marked_process_counts_only_as_the_first_of_its_namespace(tmp_path: Path) -> None:
    process = subprocess.Popen(SLEEPER, stdin=subprocess.PIPE, env={**os.environ, MARK: str(tmp_path)})
    try:
        assert find_marked(tmp_path) == []
    finally:
        process.kill()
        process.communicate()
