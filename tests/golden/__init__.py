"""Golden files: what builders make, committed. `UPDATE_GOLDEN=1` writes them anew (`make generate`)."""

import os
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FOLDER = Path(__file__).parent


def check_golden(name: str, documents: list[dict[str, Any]]) -> None:
    """Require that `documents` are those of the golden file `name` (YAML)."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 120
    out = StringIO()
    yaml.dump_all(documents, out)
    check_golden_text(name, out.getvalue())


def check_golden_text(name: str, text: str) -> None:
    """Require that `text` is that of the golden file `name`."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path} is missing: run `make generate` and read it"
    assert text == path.read_text(encoding="utf-8"), f"{path} differs: run `make generate` and read the diff"
