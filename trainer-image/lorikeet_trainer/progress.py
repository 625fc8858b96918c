"""Tells the operator how far the run is, from a thread: an endpoint that is slow or gone costs no step anything.

The wire protocol is in `lorikeet_api.progress`. Standard library alone: PID 1 uses it, too.
"""

import json
import logging
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from lorikeet_api.contract import RunRecord
from lorikeet_api.progress import CA_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, Stage
from lorikeet_api.signs import Sign
from lorikeet_run import log

INTERVAL: Final = 5.0
"""Seconds between two posts."""
TIMEOUT: Final = 5.0
"""Seconds after which a post is given up."""
_PAUSE: Final = 1.0
_REFUSED: Final = (400, 401, 403, 404, 409)
"""Answers that a second try does not change."""


@dataclass(frozen=True)
class Endpoint:
    """Where to post, and with what."""

    url: str
    authorities: Path | None
    token: Path | None

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Self | None:
        """Return what the environment says; None if it says nothing."""
        url = environment.get(URL_VARIABLE, "")
        files = [environment.get(name) for name in (CA_VARIABLE, TOKEN_VARIABLE)]
        return cls(url, *(Path(file) if file else None for file in files)) if url else None

    def post(self, status: Mapping[str, Any], timeout: float = TIMEOUT) -> None:
        """Post one status. Raises OSError (urllib's errors are), http.client.HTTPException or ValueError."""
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            # Read each time: the kubelet renews it.
            headers["Authorization"] = f"Bearer {self.token.read_text().strip()}"
        body = json.dumps({"trainerStatus": {"lastUpdatedTime": datetime.now(UTC).isoformat(), **status}}).encode()
        request = urllib.request.Request(self.url, body, headers)  # noqa: S310 - the operator names it
        context = ssl.create_default_context(cafile=self.authorities) if self.url.startswith("https:") else None
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]  # it is inside of the cluster
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
            answer.read()


class Reporter:
    """Posts the newest of what it is told, every few seconds at most; what it cannot post is lost, and no harm."""

    def __init__(self, endpoint: Endpoint | None) -> None:
        self._endpoint = endpoint
        self._told: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._failures = 0
        if endpoint is not None:
            self._thread.start()

    def stage(self, stage: Stage) -> None:
        """Tell what the run does now."""
        self._tell({"stage": stage})

    def training(self, step: int, steps: int, seconds_left: float | None, metrics: Mapping[str, float | None]) -> None:
        """Tell how far training is: `step` of `steps` are made; `metrics` have transformers' names."""
        known = {"current_step": step, "total_steps": steps, **metrics}
        told = {
            "stage": "train",
            # Whole steps: 100 is for what is published.
            "progressPercentage": min(99, 100 * step // max(1, steps)),
            "metrics": [{"name": name, "value": str(value)} for name, value in known.items() if value is not None],
        }
        if seconds_left is not None:
            told["estimatedRemainingSeconds"] = max(0, round(seconds_left))
        self._tell(told)

    def signs(self, seen: Sequence[Sign]) -> None:
        """Tell all signs so far that the run goes wrong."""
        self._tell({"signs": [sign.to_wire() for sign in seen]})

    def close(self, seconds: float = 1.0) -> None:
        """Post what is left, for so long at most."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._endpoint is not None:
            self._thread.join(seconds)

    def end(self, record: RunRecord, seconds: float) -> None:
        """Tell how the run has ended, and wait until that has arrived: for so long at most."""
        self.close(0)
        if self._endpoint is None:
            return
        told: dict[str, Any] = {"record": json.loads(record.to_message())}
        if record.artifacts is not None:
            told |= {"progressPercentage": 100, "estimatedRemainingSeconds": 0}
        # In a thread, too: looking up the endpoint's name knows no timeout.
        telling = threading.Thread(target=self._insist, args=(told, time.monotonic() + seconds), daemon=True)
        telling.start()
        telling.join(seconds)

    def _insist(self, told: Mapping[str, Any], deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            if self._post(told, min(TIMEOUT, left)):
                return
            time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))

    def _tell(self, told: Mapping[str, Any]) -> None:
        with self._changed:
            self._told.update(told)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._told or self._ended)
                told, self._told = self._told, {}
                ended = self._ended
            if told and not self._post(told, TIMEOUT):
                with self._changed:
                    self._told = {**told, **self._told}
            if ended:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._ended, INTERVAL)

    def _post(self, told: Mapping[str, Any], timeout: float) -> bool:
        """Post once; return whether there is nothing more to try. The first failure in a row is told.

        Raises nothing: whatever an endpoint may answer, the run and its exit code are none of it.
        """
        assert self._endpoint is not None  # noqa: S101 - else nothing is posted
        try:
            self._endpoint.post(told, timeout)
        except Exception as error:  # noqa: BLE001  http.client has errors of its own beside OSError
            self._failures += 1
            if self._failures == 1:
                message = f"the progress endpoint does not take it, training goes on without: {error}{_words(error)}"
                log.event("progress", level=logging.WARNING, message=message)
            return isinstance(error, urllib.error.HTTPError) and error.code in _REFUSED
        self._failures = 0
        return True


def _words(error: Exception) -> str:
    """Return what the endpoint says of its refusal."""
    if not isinstance(error, urllib.error.HTTPError):
        return ""
    try:
        return f": {error.read(500).decode(errors='replace')}"
    except Exception:  # noqa: BLE001  it may hang up in the middle of a word
        return ""
