import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import init

RUN_SUPERVISOR = """
import json, sys
from e2e.cluster import init
init.Supervisor(json.loads(sys.argv[1])).run()
"""


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0), (9, init.LONGEST_PAUSE_S)])
def test_pauses_between_restarts_grow_up_to_a_limit(failures: int, seconds: float) -> None:
    assert init.pause_before_restart(failures) == seconds


def test_what_answers_is_told_from_what_does_not(tmp_path: Path) -> None:
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        assert not init.answers(f"tcp:127.0.0.1:{port}")
        tcp.listen()
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        assert init.answers(f"tcp:127.0.0.1:{port}")
        assert init.answers(f"unix:{tmp_path}/s")
    assert not init.answers(f"unix:{tmp_path}/none")


class Running:
    """A supervisor in a process of its own: it reaps every child that it finds, pytest's too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *components: dict[str, Any]) -> None:
        spec = {"log": str(self.folder), "state": str(self.folder / "state.json"), "processes": components}
        self.process = subprocess.Popen([sys.executable, "-c", RUN_SUPERVISOR, json.dumps(spec)])

    def state(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def until(self, holds: Any) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while not holds(self.state()):
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.01)
        return self.state()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    if running.process:
        for component in running.state().values():
            if component["pid"]:
                os.kill(component["pid"], 9)
        running.process.kill()
        running.process.wait()


def test_a_component_that_ends_is_started_again_and_its_end_is_told(supervisor: Running) -> None:
    supervisor.start({"name": "c", "argv": ["sleep", "1000"], "after": []})
    first = supervisor.until(lambda s: s.get("c", {}).get("pid"))["c"]["pid"]

    os.kill(first, 9)

    second = supervisor.until(lambda s: s["c"]["restarts"] == 1 and s["c"]["pid"])["c"]
    assert second["pid"] != first
    assert second["lastExit"] == "signal SIGKILL"


def test_a_component_waits_for_what_it_needs(supervisor: Running, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    supervisor.start({"name": "c", "argv": ["sleep", "1000"], "after": [f"unix:{path}"]})
    waiting = supervisor.until(lambda s: s.get("c", {}).get("waitingFor"))
    assert waiting["c"]["pid"] == 0

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        supervisor.until(lambda s: s["c"]["pid"])


def test_output_goes_to_the_components_log(supervisor: Running, tmp_path: Path) -> None:
    supervisor.start({"name": "c", "argv": ["sh", "-c", "echo said; echo complained >&2; exit 3"], "after": []})

    state = supervisor.until(lambda s: s.get("c", {}).get("restarts", 0) >= 1)

    assert state["c"]["lastExit"] == "exit code 3"
    assert (tmp_path / "c.log").read_text().startswith("said\ncomplained\n")


def test_it_ends_when_told_to(supervisor: Running) -> None:
    supervisor.start({"name": "c", "argv": ["sleep", "1000"], "after": []})
    supervisor.until(lambda s: s.get("c", {}).get("pid"))
    assert supervisor.process is not None

    supervisor.process.terminate()

    assert supervisor.process.wait(10) == 0
