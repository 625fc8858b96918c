"""The supervisor's half of trackers: starts the process that tells them (`track`), and waits for it, never for long."""

import logging
import shutil
import subprocess
import time
from contextlib import suppress
from typing import Final

from pydantic import ValidationError

from lorikeet_api.contract import RunContract, RunRecord
from lorikeet_run import log
from lorikeet_run.report import TrackerState
from lorikeet_trainer.processes import Children, Command
from lorikeet_trainer.state import Ending, Layout, Tracked

ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    # A try that is short and alone: the tellers try again.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""What keeps trackers' libraries from asking anybody but their servers, and from insisting."""

FINISH_SECONDS: Final = 20.0
"""How long the run waits for trackers to take what is left, once it is trained."""
END_SECONDS: Final = 10.0
"""The same, to hear of its end."""
STOPPED_SECONDS: Final = 2.0
"""The same of a run that is asked to stop, from then on: what is left of the grace is for publishing."""
_OWN_SECONDS: Final = 0.5
"""What of it the process has for itself, beyond what trackers may take."""
_POLL_SECONDS: Final = 0.05


class Tracking:
    """The process that tells a run's trackers; none where there are none."""

    def __init__(self, children: Children) -> None:
        """Look at `children` for whether the run is asked to stop."""
        self._children = children
        self._process: subprocess.Popen[bytes] | None = None
        self._contract: RunContract | None = None
        self._layout: Layout | None = None

    def start(self, contract: RunContract, layout: Layout, command: Command) -> None:
        """Start it beside training, if the run has trackers."""
        if contract.tracking is None:
            return
        self._contract, self._layout = contract, layout
        for left in (layout.points, layout.tracked):
            left.unlink(missing_ok=True)
        shutil.rmtree(layout.followed, ignore_errors=True)
        # A session of its own: a stop is the supervisor's to tell.
        self._process = subprocess.Popen(
            command.arguments, env=command.environment | ENVIRONMENT, stdin=subprocess.PIPE, start_new_session=True
        )

    def finish(self, seconds: float) -> None:
        """Have what was trained told to its end, before it is published: trackers' files are a part of it.

        They are moved to the output here, those that are whole: what comes later is not published, and told at the end.
        """
        if self._layout is None:
            return
        self._tell("finish", self._layout, seconds)
        for made in self._layout.followed.glob("*"):
            with suppress(OSError):
                made.rename(self._layout.output / made.name)

    def end(self, record: RunRecord, ending: Ending, seconds: float) -> RunRecord:
        """Have told how the attempt has ended; return its record, with a word on each tracker that lacks something."""
        if self._process is None or self._layout is None or self._contract is None:
            return record
        before = self._states(self._layout)
        self._layout.tracked.unlink(missing_ok=True)
        self._tell(f"end {ending}", self._layout, seconds)
        self._process.kill()
        states = self._states(self._layout) or before
        known = {state.name: state.warning for state in states}
        assert self._contract.tracking is not None  # noqa: S101 - else nothing was started
        warnings = [known.get(name, f"{name} was not reached in time") for name in self._contract.tracking.names]
        told = [warning for warning in warnings if warning is not None]
        told += [f"{late.name}/ came too late to be published" for late in sorted(self._layout.followed.glob("*"))]
        for warning in told:
            log.event("tracking", level=logging.WARNING, message=warning)
        return record.model_copy(update={"message": "; ".join([record.message, *told])})

    def _tell(self, words: str, layout: Layout, seconds: float) -> None:
        """Say it, and wait until the process has left how the trackers stand, or is gone; a stop shortens that."""
        assert self._process is not None  # noqa: S101 - see the callers
        assert self._process.stdin is not None  # noqa: S101 - PIPE was asked for
        is_stopping = self._children.stopping
        patience = min(seconds, STOPPED_SECONDS) if is_stopping else seconds
        until = time.monotonic() + patience
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{words} {max(0.0, patience - _OWN_SECONDS)}\n".encode())
            self._process.stdin.flush()
        while not layout.tracked.exists() and self._process.poll() is None and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            if self._children.stopping and not is_stopping:
                is_stopping, until = True, min(until, time.monotonic() + STOPPED_SECONDS)

    @staticmethod
    def _states(layout: Layout) -> list[TrackerState]:
        try:
            return Tracked.read(layout.tracked).trackers
        except (OSError, ValidationError):
            return []
