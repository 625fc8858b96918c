"""The engine of this pod over HTTP: how it is asked, and what it has last answered."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from lorikeet_engines import Answer, Engine, EngineError, Http

WATCH_SECONDS: Final = 1.5
"""How long the engine may take to say which names it serves: one answer may be missed before it counts as gone."""
LOOK_SECONDS: Final = 5.0
"""How long it may take to say something else of itself."""
WORK_SECONDS: Final = 120.0
"""How long it may take to load an adapter, or to answer a first request behind others."""


class EngineHttp:
    """Sends requests to the engine on loopback."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session = session
        self._url = f"http://127.0.0.1:{port}"

    async def __call__(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Return the answer. Raises OSError (TimeoutError too) where there is none."""
        timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS if method == "GET" else WORK_SECONDS)
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self._url + path, data=data, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                return Answer(answer.status, await answer.text(errors="replace"))
        except TimeoutError as error:
            raise TimeoutError(f"the engine does not answer {method} {path} within {timeout.total:g} s") from error
        except aiohttp.ClientError as error:
            raise ConnectionError(f"the engine does not answer {method} {path}: {error}") from error


class EngineWatch:
    """Which names the engine serves, as it has last said."""

    def __init__(
        self, engine: Engine, http: Http, fresh_seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._http = http
        self._fresh_seconds = fresh_seconds
        self._now = now
        self._answered: float | None = None
        self.since = 0.0
        """Since when it answers, if it does."""
        self.names: frozenset[str] = frozenset()

    @property
    def answers(self) -> bool:
        """Return whether the engine is there. One that is busy may miss a question or two."""
        return self._answered is not None and self._now() - self._answered < self._fresh_seconds

    async def look(self) -> bool:
        """Ask the engine which names it serves, and return whether it has answered."""
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                names = await self._engine.served(self._http)
        except TimeoutError:
            return False
        except (OSError, EngineError, ValueError, LookupError, TypeError):  # what answers may be no engine at all
            self._answered = None
            return False
        if not self.answers:
            self.since = self._now()
        self.names, self._answered = names, self._now()
        return True
