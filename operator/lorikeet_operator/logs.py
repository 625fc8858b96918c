"""Structured logs: one JSON object a line, with the key that is being reconciled on each line about it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pythonjsonlogger.json import JsonFormatter

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)


@contextmanager
def about(controller: str, key: object) -> Iterator[None]:
    """Put controller and key on every line that is logged inside, also by tasks that start inside."""
    token = _about.set({"controller": controller, "key": str(key)})
    try:
        yield
    finally:
        _about.reset(token)


class _Formatter(JsonFormatter):
    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        super().add_fields(log_data, record, message_dict)
        log_data.update(_about.get() or {})


def set_up(level: str) -> None:
    """Send all logs to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf tells of every handler that it calls; what we want to know of an object, we say ourselves.
    for name in ("kopf", "asyncio", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
