"""Output for people: a line that changes in place on a terminal, and lines one after the other elsewhere."""

import shutil
import sys
from typing import Final, TextIO

_CLEAR: Final = "\r\x1b[K"
_BAR: Final = 24


class Line:
    """One changing line below those that stay."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._shown = ""

    def show(self, text: str) -> None:
        """Put `text` in the place of what was shown; where nothing can be replaced, each change is a line."""
        if text == self._shown:
            return
        self._shown = text
        if self._live:
            self._out.write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
        else:
            self._out.write(text + "\n")
        self._out.flush()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        shown = self._shown if self._live else ""
        self._out.write(f"{_CLEAR if shown else ''}{text}\n{shown}")
        self._out.flush()

    def close(self) -> None:
        """Let what is shown stay."""
        if self._live and self._shown:
            self._out.write("\n")
            self._out.flush()
        self._shown = ""


def bar(percent: int) -> str:
    """Return a bar of so many percent."""
    full = _BAR * percent // 100
    return f"[{'#' * full}{'.' * (_BAR - full)}] {percent:3d} %"


def progress(step: int | None, steps: int | None, loss: object, seconds_left: float | None) -> str:
    """Return how far training is; what is not known is left out."""
    parts = []
    if step is not None:
        parts.append(f"step {step}" + (f"/{steps}" if steps is not None else ""))
    if loss is not None:
        parts.append(f"loss {float(str(loss)):.4g}")
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
    return "  ".join(parts)
