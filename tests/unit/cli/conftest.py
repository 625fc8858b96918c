"""Commands in this process, with a folder for their files and one for the URIs of data and models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorikeet_storage.folders import FOLDERS_VARIABLE

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what a command says of folders back after the test."""
    monkeypatch.setenv(FOLDERS_VARIABLE, "")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write resources as the documents of one file (JSON is YAML, too)."""

    def make(*bodies: dict[str, Any], name: str = "finetune.yaml") -> Path:
        path = tmp_path / name
        path.write_text("\n---\n".join(json.dumps(body) for body in bodies))
        return path

    return make


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """What `tests.resources.job_body` names, on this machine; return the arguments that say so."""
    rows = tmp_path / "datasets" / "sql" / "train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    model = tmp_path / "models" / "smollm2-135m"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"max_position_embeddings": 4096}')
    (model / "model.safetensors").write_bytes(b"weights")
    return ["--map", f"s3://models={tmp_path / 'models'}", "--map", f"s3://datasets={tmp_path / 'datasets'}"]
