"""Log lines: `time=… level=… event=… key=value …`, one style for us and for the libraries."""

import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_LOGGER: Final = logging.getLogger("lorikeet")

# bitsandbytes looks for a CPU kernel on the hub and goes on without it: nothing for a user to act on.
_HARMLESS: Final = ("gemm_4bit_forward",)


class _KeyValue(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"time={moment}.{int(record.msecs):03d}Z level={record.levelname.lower()}"
        fields: dict[str, Any] | None = getattr(record, "fields", None)
        if fields is None:
            fields = {"event": "log", "logger": record.name, "message": record.getMessage()}
            if record.exc_info:
                fields["trace"] = self.formatException(record.exc_info)
        return head + "".join(f" {key}={_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    plain = text and not any(character.isspace() or character in '"=' for character in text)
    return text if plain else json.dumps(text, ensure_ascii=False)


_FIELD: Final = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')


def parse(line: str) -> dict[str, str]:
    """Return the fields of a line that was written here; of any other text none."""
    if not line.startswith("time="):
        return {}
    try:
        return {key: json.loads(value) if value[:1] == '"' else value for key, value in _FIELD.findall(line)}
    except ValueError:  # half a line, or two at once
        return {}


def _is_news(record: logging.LogRecord) -> bool:
    return not any(words in record.getMessage() for words in _HARMLESS)


def set_up(level: int = logging.INFO) -> None:
    """Send all log lines of this process to stdout; libraries' lines from warnings on."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_KeyValue())
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    _LOGGER.setLevel(level)
    logging.captureWarnings(True)
    # What one library says to another's authors.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)


def event(name: str, level: int = logging.INFO, **fields: object) -> None:
    """Write one line about `name`; fields that are None are left out."""
    _write(name, level, fields)


def _write(name: str, level: int, fields: dict[str, object]) -> None:
    told = {"event": name} | {key: value for key, value in fields.items() if value is not None}
    _LOGGER.log(level, name, extra={"fields": told})


@contextmanager
def timed(name: str, **fields: object) -> Iterator[dict[str, object]]:
    """Write one line about `name` with its seconds when the block ends well; the block may add fields."""
    more: dict[str, object] = {}
    start = time.monotonic()
    yield more
    _write(name, logging.INFO, {**fields, **more, "seconds": round(time.monotonic() - start, 3)})
