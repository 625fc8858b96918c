"""Keys that open trackers: as their libraries want them, and in nothing that is told."""

import os
from typing import Final

from lorikeet_api.tracking import MLFLOW_KEYS, WANDB_KEY

_LONGEST_ERROR: Final = 160
"""Characters that are told of an error's beginning, and of its end."""


def trim_keys() -> None:
    """Take white space off the ends of this process's keys: Secrets often end in a new line, which no header takes."""
    for name in (*MLFLOW_KEYS, WANDB_KEY):
        if name in os.environ:
            os.environ[name] = os.environ[name].strip()


def in_short(error: Exception) -> str:
    """Return where an error's text begins and where it ends, without keys: libraries quote what they were given, and
    tell all of their layers between."""
    text = str(error)
    keys = {os.environ.get(name, "").strip() for name in (*MLFLOW_KEYS, WANDB_KEY)} - {""}
    quoted = {repr(key)[1:-1] for key in keys}
    for key in sorted(keys | quoted, key=len, reverse=True):
        text = text.replace(key, "***")
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 2 * _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]} … {text[-_LONGEST_ERROR:]}"
