"""Measures how the router shares requests, and whom a change of the weights moves (`make bench-router-shares`).

    .venv/bin/python -m bench.router_shares [--requests 10000]

Two routers before an upstream that answers by itself, with three variants at most. Prints one JSON object:

- `split`: of requests without the sticky header, at 90/10: how many points a share is off its weight.
- `moved`: for each change of weights, the percentage of users that change their variant, the least that any scheme
  could move, and how far off the shares are after it.
- `differ`: users whom the two routers lead to different variants, and whom a restarted router leads elsewhere.
- `seconds`: from the exchange of the routes' file until the first answer by the new weights (the median of ten).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp

from bench.control_plane import free_port
from bench.router import LOCAL, body, envoy, routed, until_it_answers, upstream
from lorikeet_operator.serving import router
from lorikeet_operator.serving.router import Limits, Route, Variant

Weights = tuple[int, ...]
CHANGES: tuple[tuple[Weights, Weights], ...] = (((90, 10), (80, 20)), ((50, 30, 20), (40, 30, 30)))
ROUNDS = 10
BODY = body(256)


def weighing(weights: Weights) -> Route:
    """Return the model with variants of these weights."""
    variants = [Variant(name, f"{name}-1", weight) for name, weight in zip("abc", weights, strict=False)]
    return Route("support", variants, sticky="x-user-id")


class Router:
    """A router, of which the routes change while it runs."""

    def __init__(self, to: int, folder: Path, weights: Weights) -> None:
        self.folder = folder
        self.port = free_port()
        folder.mkdir(exist_ok=True)
        self.started = routed([weighing(weights)], self.port, free_port(), to, folder)

    def reweigh(self, weights: Weights) -> None:
        """Exchange the file of the routes."""
        new = self.folder / ".routes.json"
        new.write_text(json.dumps(router.routes([weighing(weights)], Limits())))
        new.rename(self.folder / "routes.json")

    async def variants(self, users: Sequence[str | None]) -> list[str]:
        """Return the variant that each user gets; None has no header."""
        gate = asyncio.Semaphore(32)
        url = f"http://{LOCAL}:{self.port}/v1/chat/completions"
        async with aiohttp.ClientSession() as session:

            async def one(user: str | None) -> str:
                headers = {} if user is None else {"x-user-id": user}
                async with gate, session.post(url, data=BODY, headers=headers) as answer:
                    answer.raise_for_status()
                    return answer.headers["x-lorikeet-variant"]

            return await asyncio.gather(*map(one, users))

    async def until_led(self, variant: str) -> float:
        """Return how many seconds it takes until requests are led to a variant, of which the weights leave one."""
        start = time.monotonic()
        while await self.variants([None]) != [variant]:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.005)
        return time.monotonic() - start

    async def settle(self, weights: Weights) -> None:
        """Give these weights, and wait until they count."""
        only = tuple(int(at == len(weights) - 1) for at in range(len(weights)))
        self.reweigh(only)
        await self.until_led("abc"[len(weights) - 1])
        self.reweigh(weights)
        while len(set(await self.variants([None] * 64))) == 1:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.005)


def off(variants: Sequence[str], weights: Weights) -> float:
    """Return by how many points the share is off that is furthest from its weight."""
    counted = Counter(variants)
    shares = zip("abc", weights, strict=False)
    return round(100 * max(abs(counted[name] / len(variants) - part / sum(weights)) for name, part in shares), 2)


def differ(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many have another variant."""
    return sum(one != other for one, other in zip(first, second, strict=True))


async def measure(count: int, folder: Path) -> dict[str, Any]:
    """Return all figures."""
    users = [f"user-{number}" for number in range(count)]
    found: dict[str, Any] = {"requests": count, "moved": {}}
    to = free_port()
    with ExitStack() as stack:
        stack.enter_context(envoy("upstream", folder, upstream(to)))
        routers = [Router(to, folder / name, (50, 30, 20)) for name in ("one", "other")]
        first, second = routers
        for each in routers:
            stack.enter_context(envoy(each.folder.name, folder, each.started))
            until_it_answers(each.port, BODY, folder)
        told = [await each.variants(users) for each in routers]
        for before, after in CHANGES:
            await first.settle(before)
            old = await first.variants(users)
            await first.settle(after)
            new = await first.variants(users)
            shares = [[part / sum(weights) for part in weights] for weights in (before, after)]
            least = 100 * sum(max(0.0, now - then) for then, now in zip(*shares, strict=True))
            found["moved"][" to ".join("/".join(map(str, weights)) for weights in (before, after))] = {
                "percent": round(100 * differ(old, new) / count, 2),
                "least_possible": round(least, 2),
                "off_points": off(new, after),
            }
        await second.settle((90, 10))
        found["split"] = {"weights": (90, 10), "off_points": off(await second.variants([None] * count), (90, 10))}
        seconds = []
        for _ in range(ROUNDS):
            for weights, variant in (((1, 0), "a"), ((0, 1), "b")):
                second.reweigh(weights)
                seconds.append(await second.until_led(variant))
        found["seconds"] = round(statistics.median(seconds), 3)
    with ExitStack() as stack:
        stack.enter_context(envoy("upstream", folder, upstream(to)))
        again = Router(to, folder / "one", (50, 30, 20))
        stack.enter_context(envoy("again", folder, again.started))
        until_it_answers(again.port, BODY, folder)
        found["differ"] = {
            "between_routers": differ(*told),
            "after_restart": differ(told[0], await again.variants(users)),
        }
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lorikeet-bench-") as name:
        print(json.dumps(asyncio.run(measure(given.requests, Path(name))), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
