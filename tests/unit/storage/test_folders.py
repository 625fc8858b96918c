"""A folder in the place of a bucket: sources are read from it, and what a run makes is published there as in S3."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorikeet_api.compute import RESERVED_ENV
from lorikeet_api.contract import REPORT, FileDigest, LatestPointer, Metrics, SourceDigest, StorageAccess
from lorikeet_api.training import DataSource, ModelSource
from lorikeet_storage import (
    Checkpoints,
    StorageError,
    check_free,
    fetch_data,
    fetch_model,
    find_published,
    find_run,
    leave_file,
    publish,
    remove_run,
    run_place,
)
from lorikeet_storage.folders import FOLDERS_VARIABLE, FolderStore, folder_of, use_folders
from lorikeet_storage.s3 import write_file
from lorikeet_storage.uri import parse, parse_s3
from tests import runs

ACCESS = StorageAccess()
OUTPUT = "s3://out/sql"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which `s3://out` lies; nothing here may open S3."""
    monkeypatch.setenv(FOLDERS_VARIABLE, "")
    monkeypatch.setattr("lorikeet_storage.stores.S3", None)
    sources = {"s3://data/raw": tmp_path / "raw", "pvc://claim": tmp_path / "claim"}
    use_folders(sources, {"s3://out": tmp_path / "out"})
    return tmp_path / "out"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What a run has made."""
    folder = tmp_path / "made"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "metrics.json").write_text("{}")
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("s3://data/raw", "raw"),
        ("s3://data/rawer/a", None),
        ("s3://data/raw/train.jsonl", "raw/train.jsonl"),
        ("s3://data/train.jsonl", None),
        ("pvc://claim/m", "claim/m"),
    ],
)
def test_whole_segments_of_a_uri_name_a_folder(out: Path, tmp_path: Path, uri: str, path: str | None) -> None:
    assert folder_of(parse(uri), "data") == (None if path is None else tmp_path / path)


def test_what_is_read_from_a_folder_is_not_written_there_nor_the_other_way_round(tmp_path: Path, out: Path) -> None:
    use_folders({"s3://b": tmp_path / "read"}, {"s3://b/out": tmp_path / "written"})
    location = parse("s3://b/out/x")
    assert folder_of(location, "model") == tmp_path / "read/out/x"
    assert folder_of(location, "output") == tmp_path / "written/x"
    assert folder_of(parse("s3://b/other"), "output") is None


def test_no_job_of_a_cluster_may_have_its_pod_publish_to_itself() -> None:
    assert FOLDERS_VARIABLE in RESERVED_ENV


def test_the_longest_beginning_counts(out: Path, tmp_path: Path) -> None:
    use_folders({"s3://b": tmp_path / "short", "s3://b/c": tmp_path / "long"})
    assert folder_of(parse("s3://b/c/d"), "data") == tmp_path / "long/d"


def test_a_model_is_linked_wherever_its_own_links_lead(out: Path, tmp_path: Path) -> None:
    """As those of the hub's cache do."""
    blob = tmp_path / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    model = tmp_path / "claim" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").symlink_to(blob)
    fetched = fetch_model(ModelSource(uri="pvc://claim/tiny"), tmp_path / "in", ACCESS)
    assert (fetched.path / "model.safetensors").resolve() == blob
    assert fetched.digest.uri == "pvc://claim/tiny"


def test_one_file_may_stand_for_a_key(out: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    use_folders({"s3://data/train.jsonl": tmp_path / "mine.jsonl"})
    fetched = fetch_data(DataSource(uri="s3://data/train.jsonl"), tmp_path / "in", ACCESS)
    assert [path.name for path in fetched.files] == ["mine.jsonl"]


def test_data_that_is_not_there_is_said_with_uri_and_folder(out: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"s3://data/raw/x\.jsonl \(.*/raw/x\.jsonl\) does not exist") as caught:
        fetch_data(DataSource(uri="s3://data/raw/x.jsonl"), tmp_path / "in", ACCESS)
    assert caught.value.reason == "DataNotFound"


def test_what_is_published_to_a_folder_lies_there_as_in_a_bucket(out: Path, made: Path) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    assert find_published(contract.output_uri, contract.run_id, ACCESS) is None
    assert find_run(contract) is None
    check_free(contract)
    artifacts = publish(made, runs.draft(contract)).artifacts
    assert files(out / "sql") == [
        f"{contract.run_id}/adapter/adapter_model.safetensors",
        f"{contract.run_id}/commit.json",
        f"{contract.run_id}/manifest.json",
        f"{contract.run_id}/metrics.json",
        f"{contract.run_id}/run.json",
        "latest.json",
    ]
    assert not (out / "sql" / contract.run_id / "staging").exists()
    found = find_published(contract.output_uri, contract.run_id, ACCESS)
    assert found is not None
    assert found == publish(made, runs.draft(contract))
    assert found.artifacts == artifacts
    pointer = LatestPointer.model_validate_json((out / "sql" / "latest.json").read_bytes())
    assert pointer == LatestPointer(run_id=contract.run_id, sha256=artifacts.sha256)


def test_what_is_left_on_the_way_is_in_nobodys_way(out: Path, made: Path) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    check_free(contract)
    leave_file(contract, made / "metrics.json", "tensorboard/events")
    run = out / "sql" / contract.run_id
    assert files(run) == ["live/tensorboard/events", "run.json"]
    assert run_place(contract) == str(run)

    published = publish(made, runs.draft(contract))

    assert not (run / "live").exists()
    leave_file(contract, made / "adapter" / "adapter_model.safetensors", "metrics.json")  # by a pod that was given up
    assert find_published(contract.output_uri, contract.run_id, ACCESS) == published
    check_free(contract)


def test_nothing_is_published_under_the_name_of_what_is_on_the_way(out: Path, made: Path) -> None:
    (made / "live").mkdir()
    (made / "live" / "events").write_text("")
    with pytest.raises(StorageError, match="live/events is a reserved name"):
        publish(made, runs.draft(runs.contract(OUTPUT, ACCESS)))


def test_an_end_before_the_manifest_leaves_no_result_and_the_committed_attempt_counts(
    out: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "copy", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            publish(made, runs.draft(contract))
    assert find_published(contract.output_uri, contract.run_id, ACCESS) is None
    (made / "metrics.json").write_text('{"later": 1}')
    publish(made, runs.draft(contract))
    assert (out / "sql" / contract.run_id / "metrics.json").read_text() == "{}"


READ = SourceDigest(uri="s3://models/tiny", files=[FileDigest(path="config.json", sha256="00", size=1)])


@pytest.mark.parametrize("changes", [{"base_model": READ}, {"data": [READ]}, {"rewards": [READ]}])
def test_a_committed_attempt_on_other_data_is_not_taken_for_ours(
    out: Path, made: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "copy", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            publish(made, runs.draft(contract))
    ours = runs.draft(contract).model_copy(update={**changes, "metrics": Metrics(train_loss=7)})
    with pytest.raises(
        StorageError, match=rf"{contract.run_id}/commit\.json\) names an attempt on other data"
    ) as caught:
        publish(made, ours)
    assert caught.value.reason == "OutputConflict"
    (out / "sql" / contract.run_id / "commit.json").unlink()
    assert publish(made, ours).manifest.metrics.train_loss == 7


def test_a_result_that_was_copied_is_found_where_it_lies(out: Path, made: Path) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    (made / "report").mkdir()
    (made / REPORT).write_text("<html>")
    publish(made, runs.draft(contract))
    (out / "sql").rename(out / "moved")
    found = find_published("s3://out/moved", contract.run_id, ACCESS)
    assert found is not None
    assert found.artifacts.uri == f"s3://out/moved/{contract.run_id}"
    assert found.artifacts.report == f"s3://out/moved/{contract.run_id}/{REPORT}"


def test_the_contract_that_began_a_run_is_found_again_and_no_other(out: Path) -> None:
    begun = runs.contract(OUTPUT, ACCESS)
    check_free(begun)
    assert find_run(begun.model_copy(update={"date": "2027-01-01"})) == begun
    other = runs.contract(OUTPUT, ACCESS, seed=2, run_id=begun.run_id)
    assert find_run(other) is None
    with pytest.raises(StorageError, match="describes another run"):
        check_free(other)


def test_files_of_somebody_else_are_left_alone(out: Path) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    foreign = out / "sql" / contract.run_id / "thesis.pdf"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    with pytest.raises(StorageError, match=rf"\({out}/sql/{contract.run_id}\) holds files .*thesis\.pdf"):
        check_free(contract)


def test_checkpoints_are_kept_found_and_removed(out: Path, tmp_path: Path) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    checkpoints = Checkpoints(contract, "basis")
    saved, sent = tmp_path / "saved", list[int]()
    saved.mkdir()
    for step in (2, 4, 6):
        (saved / "weights").write_text(str(step))
        checkpoints.save(saved, step, sent.append)
    assert sum(sent) == 3
    checkpoints.prune(2)
    newest, older = checkpoints.newest()
    assert (newest.checkpoint.step, older.checkpoint.step) == (6, 4)
    checkpoints.fetch(newest, tmp_path / "got")
    assert (tmp_path / "got" / "weights").read_text() == "6"
    folder = out / "sql" / contract.run_id / "checkpoints"
    next(folder.glob("00000006-*/weights")).write_text("7")
    with pytest.raises(StorageError, match="not what was saved"):
        checkpoints.fetch(newest, tmp_path / "got")
    (folder / "killed.part").write_text("half")
    checkpoints.remove_all()
    assert files(out) == []


def test_a_run_is_removed_with_its_folders_but_not_the_output(out: Path, made: Path) -> None:
    contract = runs.contract(OUTPUT, ACCESS)
    check_free(contract)
    publish(made, runs.draft(contract))
    assert "deleted s3://out/sql/" in remove_run(contract)
    assert out.is_dir()
    assert list(out.iterdir()) == []


def test_two_who_write_one_file_do_not_write_into_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def parts() -> Iterator[bytes]:
        yield b"one "
        write_file(path, iter([b"another"]))
        yield b"whole"

    write_file(path, parts())
    assert path.read_bytes() == b"one whole"
    assert files(tmp_path) == ["file"]


def test_a_file_is_put_where_none_is_and_replaces_none(out: Path) -> None:
    store, location = FolderStore(), parse_s3("s3://out/a/b.json")
    assert store.put_if_absent(location, b"1")
    assert not store.put_if_absent(location, b"2")
    assert (out / "a" / "b.json").read_bytes() == b"1"
    assert files(out) == ["a/b.json"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP])
def test_where_there_are_no_hard_links_a_file_replaces_none_either(
    out: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    store, location = FolderStore(), parse_s3("s3://out/b.json")
    assert store.put_if_absent(location, b"1")
    assert not store.put_if_absent(location, b"2")
    assert (out / "b.json").read_bytes() == b"1"
    assert files(out) == ["b.json"]
