"""The one YAML loader: YAML 1.2 rules, as kubectl reads it (PyYAML reads `2e-4` as a string)."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def load_all(source: str | Path) -> list[Any]:
    """Return the documents of a YAML text or file; empty ones are left out.

    Raises:
        ruamel.yaml.YAMLError: if the text is not YAML.
    """
    text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    return [document for document in YAML(typ="safe", pure=True).load_all(text) if document is not None]


def load(text: str) -> Any:
    """Return the one value of a YAML text; None if it is empty. Raises ruamel.yaml.YAMLError."""
    return YAML(typ="safe", pure=True).load(text)
