"""Publishing against a real S3 server: whole or not at all, whoever else is at it."""

import json
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from lorikeet_api.contract import REPORT
from lorikeet_storage import StorageError, check_free, find_published, publish
from lorikeet_storage.s3 import S3
from tests import runs
from tests.s3 import S3Server

pytestmark = pytest.mark.trainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a trainer has to publish."""
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / "adapter" / "adapter_model.safetensors").write_bytes(b"weights" * 1000)
    (tmp_path / "out" / "adapter" / "adapter_config.json").write_text("{}")
    return tmp_path / "out"


def test_publishes_files_first_and_leaves_nothing_else(s3: S3Server, bucket: str, folder: Path) -> None:
    contract = runs.contract(f"s3://{bucket}/team-a/sql", s3.access)
    check_free(contract)
    assert find_published(contract.output_uri, contract.run_id, s3.access) is None

    artifacts = publish(folder, runs.draft(contract)).artifacts

    run = f"team-a/sql/{contract.run_id}"
    assert s3.keys(bucket) == [
        f"{run}/adapter/adapter_config.json",
        f"{run}/adapter/adapter_model.safetensors",
        f"{run}/commit.json",
        f"{run}/manifest.json",
        f"{run}/run.json",
        "team-a/sql/latest.json",
    ]
    manifest_bytes = (s3.data / bucket / run / "manifest.json").read_bytes()
    assert artifacts.sha256 == sha256(manifest_bytes).hexdigest()
    assert artifacts.revision == artifacts.sha256[:8]
    assert artifacts.uri == f"s3://{bucket}/{run}"
    assert artifacts.size_bytes == 7002
    assert artifacts.report is None, "none was written"
    for file in json.loads(manifest_bytes)["files"]:
        stored = (s3.data / bucket / run / file["path"]).read_bytes()
        assert (file["sha256"], file["size"]) == (sha256(stored).hexdigest(), len(stored))
    pointer = json.loads((s3.data / bucket / "team-a/sql/latest.json").read_bytes())
    assert pointer == {"runId": contract.run_id, "sha256": artifacts.sha256}
    found = find_published(contract.output_uri, contract.run_id, s3.access)
    assert found is not None
    assert found.sha256 == artifacts.sha256


def test_a_report_is_named_to_whoever_finds_the_run(s3: S3Server, bucket: str, folder: Path) -> None:
    contract = runs.contract(f"s3://{bucket}/told", s3.access)
    (folder / REPORT).parent.mkdir()
    (folder / REPORT).write_text("<!doctype html>")
    artifacts = publish(folder, runs.draft(contract)).artifacts
    assert artifacts.report == f"s3://{bucket}/told/{contract.run_id}/{REPORT}"
    found = find_published(contract.output_uri, contract.run_id, s3.access)
    assert found is not None
    assert found.artifacts == artifacts


def test_the_second_publisher_adopts_the_first_ones_result(
    s3: S3Server, bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    first = publish(folder, runs.draft(contract))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"others!" * 1000)
    monkeypatch.delattr(S3, "upload")  # nothing is sent
    assert publish(folder, runs.draft(contract)) == first
    stored = s3.data / bucket / "o" / contract.run_id / "adapter/adapter_model.safetensors"
    assert stored.read_bytes() == b"weights" * 1000


def test_two_publishers_at_once_agree_on_one_whole_result(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    results: list[object] = []
    start = threading.Barrier(4)

    def run(number: int) -> None:
        own = tmp_path / str(number)
        own.mkdir()
        for name in "abcdef":
            (own / name).write_bytes(bytes([number]) * 1000)
        start.wait()
        try:
            results.append(publish(own, runs.draft(contract)))
        except StorageError as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [results[0]] * 4
    found = find_published(contract.output_uri, contract.run_id, s3.access)
    assert found is not None
    for file in found.manifest.files:
        assert sha256((s3.data / bucket / "o" / contract.run_id / file.path).read_bytes()).hexdigest() == file.sha256


def test_a_pod_killed_after_the_commit_is_finished_by_the_next(
    s3: S3Server, bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise SystemExit

        patch.setattr(S3, "copy", killed)
        with pytest.raises(SystemExit):
            publish(folder, runs.draft(contract))
    assert find_published(contract.output_uri, contract.run_id, s3.access) is None
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"later!!" * 1000)

    publish(folder, runs.draft(contract))

    stored = s3.data / bucket / "o" / contract.run_id / "adapter/adapter_model.safetensors"
    assert stored.read_bytes() == b"weights" * 1000, "the committed attempt counts"
    assert not any("staging" in key for key in s3.keys(bucket))


def test_leftovers_of_the_same_run_are_ours_wherever_it_ran(s3: S3Server, bucket: str) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    check_free(contract)
    s3.put(bucket, f"o/{contract.run_id}/adapter/half", b"x")
    check_free(contract.model_copy(update={"namespace": "team-b", "gpus": 8, "date": "2027-01-01"}))


def test_foreign_files_in_the_way(s3: S3Server, bucket: str) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    s3.put(bucket, f"o/{contract.run_id}/thesis.pdf", b"mine")
    with pytest.raises(StorageError, match=r"thesis\.pdf") as caught:
        check_free(contract)
    assert caught.value.reason == "OutputConflict"
    assert s3.keys(bucket) == [f"o/{contract.run_id}/thesis.pdf"]


@pytest.mark.parametrize("what", ["another run", "the same id for another request", "no contract"])
def test_another_runs_marker_in_the_way(s3: S3Server, bucket: str, what: str) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    other = {
        "another run": runs.contract(f"s3://{bucket}/o", s3.access, seed=2).to_wire(),
        "the same id for another request": runs.contract(
            f"s3://{bucket}/o", s3.access, seed=2, run_id=contract.run_id
        ).to_wire(),
        "no contract": "no contract",
    }[what]
    s3.put(bucket, f"o/{contract.run_id}/run.json", json.dumps(other).encode())
    with pytest.raises(StorageError, match="describes another run") as caught:
        check_free(contract)
    assert caught.value.reason == "OutputConflict"


def test_output_bucket_that_is_missing(s3: S3Server) -> None:
    contract = runs.contract("s3://no-such-output/o", s3.access)
    with pytest.raises(StorageError, match=r"(?s)no-such-output.*does not exist") as caught:
        check_free(contract)
    assert caught.value.reason == "StorageRefused"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "no readable manifest"),
        (lambda text: text.replace(b'"path": "adapter/', b'"path": "../'), "not a plain relative path"),
        (lambda text: text.replace(b'"size": 7000', b'"size": 7001'), "missing or of another size"),
    ],
)
def test_a_damaged_manifest_is_said(s3: S3Server, bucket: str, folder: Path, damage: object, message: str) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    publish(folder, runs.draft(contract))
    path = s3.data / bucket / "o" / contract.run_id / "manifest.json"
    assert callable(damage)
    s3.put(bucket, f"o/{contract.run_id}/manifest.json", damage(path.read_bytes()))
    with pytest.raises(StorageError, match=message):
        find_published(contract.output_uri, contract.run_id, s3.access)


def test_a_manifest_whose_files_are_gone_is_no_result(s3: S3Server, bucket: str, folder: Path) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    publish(folder, runs.draft(contract))
    (s3.data / bucket / "o" / contract.run_id / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(StorageError, match=r"adapter_config\.json"):
        find_published(contract.output_uri, contract.run_id, s3.access)


def test_a_link_and_a_reserved_name_are_not_published(s3: S3Server, bucket: str, folder: Path, tmp_path: Path) -> None:
    contract = runs.contract(f"s3://{bucket}/o", s3.access)
    (folder / "adapter" / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(StorageError, match="symbolic link"):
        publish(folder, runs.draft(contract))
    (folder / "adapter" / "passwd").unlink()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match="reserved name"):
        publish(folder, runs.draft(contract))
    assert s3.keys(bucket) == []
