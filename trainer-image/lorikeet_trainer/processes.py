"""Child processes of PID 1: started, signalled, reaped. Standard library alone, nothing slow to import."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Final

KILL_AFTER_SECONDS: Final = 10.0
"""Between SIGTERM and SIGKILL for the ranks that outlive a failed one."""
GRACE_SECONDS: Final = 30.0
"""The same for a stopped run, until the contract says how long the grace is."""
_TAIL_LINES: Final = 30
_HELPER_STARTS: Final = 4
"""How often a helper is started at most: one that fails again and again is left alone."""
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Command:
    """A process to start: its arguments and its whole environment."""

    arguments: Sequence[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class End:
    """How a process ended."""

    index: int
    """Place of its command among those started together: the rank."""
    status: int
    """Exit code, or minus the signal that killed it."""
    stderr_tail: str
    """The last lines that it wrote to stderr."""


@dataclass
class _Child:
    index: int
    process: subprocess.Popen[bytes]
    reader: threading.Thread
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))


class Children:
    """The processes of one stage at a time, and one that helps them.

    SIGTERM and SIGINT reach `stop` from the moment of `listen`: PID 1 has no default action for them. `run`
    waits in `waitpid`, and the handlers run whenever a signal interrupts it.
    """

    def __init__(self) -> None:
        self.stopping = False
        """Whether the run was asked to stop."""
        self.grace_seconds = GRACE_SECONDS
        """Seconds from the request to stop until what still runs is killed."""
        self._alive: dict[int, _Child] = {}
        self._helper: subprocess.Popen[bytes] | None = None
        self._helper_command: Command | None = None
        self._helper_starts = 0
        self._killed_at = 0.0
        """When a stopped run is killed, on the monotonic clock."""

    def listen(self) -> None:
        """Handle signals from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGALRM, self._on_alarm)

    def run(self, commands: Sequence[Command], *, even_stopping: bool = False) -> list[End]:
        """Start `commands` together and wait for all; return their ends in the order in which they came.

        Once the run is asked to stop nothing is started any more, but with `even_stopping` for the rest of the grace.

        When one fails the others are stopped: they would wait for it in a collective for ever.
        """
        for index, command in enumerate(commands):
            if not self.stopping or even_stopping:
                self._start(index, command, told=not even_stopping)
        ends: list[End] = []
        while self._alive:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            child = self._alive.pop(pid, None)
            if child is None:
                # The helper, or an orphan that became ours, as PID 1's lot is.
                self._restart_helper(pid, status)
                continue
            child.process.returncode = code = os.waitstatus_to_exitcode(status)
            # Its own children may hold the pipe open: do not wait for them.
            child.reader.join(timeout=2)
            ends.append(End(child.index, code, "".join(child.tail)))
            if code != 0 and self._alive and not self.stopping:
                self._signal(signal.SIGTERM)
                signal.setitimer(signal.ITIMER_REAL, KILL_AFTER_SECONDS)
        if not self.stopping:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return ends

    def start_helper(self, command: Command) -> None:
        """Start a process beside those of `run`; it is started again if it fails, and ends by `end_helper`."""
        self._helper_starts += 1
        self._helper_command = command
        self._helper = subprocess.Popen(
            command.arguments, env=command.environment, stdin=subprocess.PIPE, start_new_session=True
        )

    def end_helper(self, seconds: float) -> None:
        """Tell the helper by the end of its stdin to finish, and wait: so long, or for what is left of the grace."""
        helper, self._helper = self._helper, None
        if helper is None:
            return
        assert helper.stdin is not None  # noqa: S101 - for the type checker; PIPE was asked for
        helper.stdin.close()
        patience = time.monotonic() + seconds
        while helper.poll() is None and time.monotonic() < (self._killed_at if self.stopping else patience):
            time.sleep(_POLL_SECONDS)
        helper.kill()
        helper.wait()

    def _restart_helper(self, pid: int, status: int) -> None:
        helper = self._helper
        if helper is None or pid != helper.pid:
            return
        helper.returncode = os.waitstatus_to_exitcode(status)
        self._helper = None
        if helper.returncode != 0 and self._helper_starts < _HELPER_STARTS and self._helper_command is not None:
            self.start_helper(self._helper_command)

    def _signal_helper(self, number: int) -> None:
        if self._helper is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._helper.pid, number)

    def _start(self, index: int, command: Command, *, told: bool) -> None:
        process = subprocess.Popen(
            command.arguments,
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stderr is not None  # noqa: S101 - for the type checker; PIPE was asked for
        child = _Child(index, process, threading.Thread(target=lambda: None))
        child.reader = threading.Thread(target=_copy, args=(process.stderr, child.tail), daemon=True)
        child.reader.start()
        self._alive[process.pid] = child
        if self.stopping and told:
            self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        for pid in list(self._alive):
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                continue

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.stopping = True
        self._killed_at = time.monotonic() + self.grace_seconds
        self._signal(signal.SIGTERM)
        self._signal_helper(signal.SIGTERM)
        signal.setitimer(signal.ITIMER_REAL, self.grace_seconds)

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._signal(signal.SIGKILL)


def _copy(source: IO[bytes], tail: deque[str]) -> None:
    """Pass a child's stderr on to ours, and keep its last lines."""
    with source:
        for line in source:
            text = line.decode(errors="replace")
            tail.append(text)
            sys.stderr.write(text)
            sys.stderr.flush()
