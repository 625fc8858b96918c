"""An application that uses a ModelDeployment, in a pod: asks without end, never asks twice, and counts.

One file of the standard library and aiohttp, which `e2e.load` mounts into a pod. What it does is JSON in the variable
CLIENT (a `Plan`); `GET /report` on port 8080 says what has come of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

PORT = 8080


@dataclass(frozen=True)
class Plan:
    """What to ask."""

    url: str
    """Of the deployment, up to `/v1`."""
    model: str
    questions: list[str]
    expected: dict[str, list[str]] = field(default_factory=dict)
    """Regular expressions for the answers of each adapter, by its name without revision: one for each question, or one
    for all. Others may answer anything."""
    concurrency: int = 1
    pause: float = 0.0
    """Seconds from an answer until the next request in its place: who asks all the while need not take all there is."""
    users: int = 1000
    """Values of the sticky header, one after the other."""
    sticky: str = "x-user-id"
    max_tokens: int = 16


@dataclass
class Report:
    """What has come of it. Times are Unix times."""

    sent: int = 0
    answered: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Requests that were not answered as a whole with 200: time, error, and whether it was streamed."""
    wrong: list[dict[str, Any]] = field(default_factory=list)
    """Answers that do not fit the adapter that their header names."""
    streams: int = 0
    """Of the answers, those that were streamed up to their `[DONE]`."""
    variants: dict[str, int] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    timeline: list[tuple[float, str, str]] = field(default_factory=list)
    """The newest answers: when each was asked for, variant and revision."""
    examples: list[dict[str, str]] = field(default_factory=list)
    """The first answer of each variant: question, user, variant, revision, text."""
    moved: int = 0
    """Answers to a user by another variant than the one before."""


class Client:
    """Asks with so many requests at a time."""

    def __init__(self, plan: Plan, session: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._session = session
        self._number = 0
        self._variants: Counter[str] = Counter()
        self._revisions: Counter[str] = Counter()
        self._last: dict[str, str] = {}
        self._report = Report()

    def report(self) -> dict[str, Any]:
        """Return what has come of it so far."""
        self._report.variants, self._report.revisions = dict(self._variants), dict(self._revisions)
        return asdict(self._report)

    async def run(self) -> None:
        """Ask until cancelled."""
        await asyncio.gather(*(self._ask_on() for _ in range(self._plan.concurrency)))

    async def _ask_on(self) -> None:
        while True:
            number, self._number = self._number, self._number + 1
            began = time.time()
            try:
                await self._ask(number)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError) as error:
                said = f"{type(error).__name__}: {error}"[:300]
                self._report.failures.append(
                    {"asked": began, "failed": time.time(), "error": said, "streamed": number % 2 == 1}
                )
                await asyncio.sleep(0.05)
            await asyncio.sleep(self._plan.pause)

    async def _ask(self, number: int) -> None:
        plan, streamed = self._plan, number % 2 == 1
        question = number % len(plan.questions)
        body = {
            "model": plan.model,
            "messages": [{"role": "user", "content": plan.questions[question]}],
            "max_tokens": plan.max_tokens,
            "temperature": 0,
            "stream": streamed,
        }
        user = f"user-{number % plan.users}"
        began = time.time()
        self._report.sent += 1
        headers = {plan.sticky: user}
        async with self._session.post(f"{plan.url}/chat/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {(await answer.text())[:200]}")
            variant, revision = (answer.headers[name] for name in ("x-lorikeet-variant", "x-lorikeet-revision"))
            text = await _streamed(answer) if streamed else _whole(await answer.json())
        if variant not in self._variants:
            told = {"question": plan.questions[question], "user": user, "variant": variant}
            self._report.examples.append({**told, "revision": revision, "text": text.strip()})
        self._count(user, variant, revision, streamed, began)
        expected = plan.expected.get(revision.rpartition("-")[0])
        if expected is not None and not re.fullmatch(expected[question % len(expected)], text.strip()):
            self._report.wrong.append({"revision": revision, "question": plan.questions[question], "text": text})

    def _count(self, user: str, variant: str, revision: str, streamed: bool, began: float) -> None:
        report = self._report
        report.answered += 1
        report.streams += streamed
        self._variants[variant] += 1
        self._revisions[revision] += 1
        report.moved += self._last.setdefault(user, variant) != variant
        self._last[user] = variant
        report.timeline = [*report.timeline[-4999:], (began, variant, revision)]


def _whole(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"] or "")


async def _streamed(answer: aiohttp.ClientResponse) -> str:
    """Return the text of a stream that ends as it must. Raises ValueError."""
    parts, done = [], False
    async for line in answer.content:
        said = line.decode().strip()
        if said == "data: [DONE]":
            done = True
        elif said.startswith("data: "):
            delta = json.loads(said.removeprefix("data: "))["choices"][0]["delta"]
            parts.append(delta.get("content") or "")
    if not done:
        raise ValueError("the stream ended without [DONE]")
    return "".join(parts)


async def main() -> None:
    """Ask, and report to whom asks."""
    plan = Plan(**json.loads(os.environ["CLIENT"]))
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        client = Client(plan, session)

        async def on_report(_: web.Request) -> web.Response:
            return web.json_response(client.report())

        app = web.Application()
        app.router.add_get("/report", on_report)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", PORT).start()
        await client.run()


if __name__ == "__main__":
    asyncio.run(main())
