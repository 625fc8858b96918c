"""Tokenised sets in a run's folder: there once their index is, and only one at a time."""

from pathlib import Path

import pytest

from lorikeet_api.contract import FileDigest, StorageAccess
from lorikeet_storage import StorageError, TokenSets
from lorikeet_storage.folders import use_folders
from tests import runs

CONTRACT = runs.contract("s3://out/sql", StorageAccess())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder."""
    monkeypatch.setenv("LORIKEET_FOLDERS", "")
    use_folders({}, {"s3://out": tmp_path / "out"})
    return tmp_path / "out" / "sql" / CONTRACT.run_id


def saved(sets: TokenSets, folder: Path, address: str) -> FileDigest:
    folder.mkdir(exist_ok=True)
    (folder / "0-000000.safetensors").write_bytes(address.encode())
    return sets.save(address, folder / "0-000000.safetensors")


def test_a_set_without_its_index_is_none(run: Path, tmp_path: Path) -> None:
    sets = TokenSets(CONTRACT)
    saved(sets, tmp_path / "made", "aa")
    assert (sets.is_any(), sets.index("aa")) == (False, None)
    sets.finish("aa", b"{}")
    assert (sets.is_any(), sets.index("aa")) == (True, b"{}")
    assert (run / "tokens" / "aa" / "index.json").exists()


def test_a_new_set_takes_the_place_of_all_others(run: Path, tmp_path: Path) -> None:
    sets = TokenSets(CONTRACT)
    for address in ("aab", "aa"):
        saved(sets, tmp_path / "made", address)
        sets.finish(address, b"{}")
    assert [path.name for path in (run / "tokens").iterdir()] == ["aa"]
    sets.remove("aa")
    assert not sets.is_any()
    assert not (run / "tokens").exists()


def test_what_is_fetched_is_what_was_saved(run: Path, tmp_path: Path) -> None:
    sets = TokenSets(CONTRACT)
    file = saved(sets, tmp_path / "made", "aa")
    sets.fetch("aa", [file], tmp_path / "got")
    assert (tmp_path / "got" / file.path).read_bytes() == b"aa"
    (run / "tokens" / "aa" / file.path).write_bytes(b"ab")
    with pytest.raises(StorageError, match="is not what was saved"):
        sets.fetch("aa", [file], tmp_path / "got")
    with pytest.raises(StorageError, match="not a plain relative path"):
        sets.fetch("aa", [file.model_copy(update={"path": "../x"})], tmp_path / "got")
