"""Subsets and splits are found as the hub's own library finds them."""

from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset_builder  # type: ignore[import-untyped]

from tests.unit.storage.test_splits import CARD, NAMES, chosen

pytestmark = pytest.mark.trainer

LAYOUTS: dict[str, tuple[list[str], str | None, str | None]] = {
    "names": (["train_0.jsonl", "train_1.jsonl", "dev.jsonl", "test-a.jsonl", "other.jsonl"], None, None),
    "folders": (["data/train/a.jsonl", "data/valid/a.jsonl", "data/test/x/a.jsonl"], None, None),
    "shards": (["data/train-00000-of-00001.jsonl", "data/random-00000-of-00001.jsonl"], None, None),
    "no splits": (["a.jsonl", "b/c.jsonl"], None, None),
    "a card's patterns": (NAMES, CARD, "en"),
    "a card's folder": (NAMES, CARD, "de"),
    "a card's default": (NAMES, CARD, None),
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_the_splits_are_those_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    names, card, subset = LAYOUTS[what]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "set"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"text": "x"}\n')
    if card is not None:
        (root / "README.md").write_text(card)
    files: Any = load_dataset_builder(str(root), subset).config.data_files
    parts = {} if subset is None else {"subset": subset}
    for split, paths in files.items():
        theirs = sorted(Path(path).relative_to(root).as_posix() for path in paths)
        assert chosen(names, card, split=str(split), **parts) == theirs
