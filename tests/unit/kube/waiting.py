"""Waits for a condition, with a deadline."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Return as soon as the condition holds."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  conditions are of any kind
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"did not happen within {seconds} s: {what}") from None
