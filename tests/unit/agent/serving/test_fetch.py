"""Which adapters come to lie beside an engine, and how it is said why another does not."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from lorikeet_agent.serving.errors import AdapterError, failure_of
from lorikeet_agent.serving.fetch import AdapterFiles
from lorikeet_api.contract import FileDigest, Servable, StorageAccess
from lorikeet_api.serving import AdapterReason, AdapterRevision
from lorikeet_storage import StorageError
from lorikeet_storage.s3 import S3
from tests.s3 import free_port
from tests.unit.agent.serving.pod import (
    Store,
    adapter_contents,
    base_digest,
    contract,
    settings_in,
    sha256,
    write_base,
)


def files_in(tmp_path: Path, access: StorageAccess, **changes: Any) -> AdapterFiles:
    settings = settings_in(tmp_path, contract(access, **changes))
    write_base(settings.model)
    return AdapterFiles(settings)


def failure(files: AdapterFiles, revision: AdapterRevision) -> AdapterError:
    with pytest.raises((AdapterError, StorageError, OSError)) as caught:
        files.ensure(revision)
    assert not files.folder(revision.served).exists()
    return failure_of(caught.value)


def refused(files: AdapterFiles, revision: AdapterRevision, reason: AdapterReason, *words: str) -> None:
    told = failure(files, revision)
    assert told.reason == reason, told.message
    assert not told.retryable
    for word in words:
        assert word in told.message


def test_an_adapter_lies_in_the_folder_of_its_name(store: Store, tmp_path: Path) -> None:
    revision, files = store.publish("sql"), files_in(tmp_path, store.server.access)
    files.ensure(revision)
    assert files.names() == {revision.served}
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (files.folder(revision.served) / name).read_bytes() == store.read(revision, f"adapter/{name}")


def test_what_was_verified_is_not_fetched_again(store: Store, tmp_path: Path) -> None:
    revision, files = store.publish("sql"), files_in(tmp_path, store.server.access)
    files.ensure(revision)
    store.overwrite(revision, "manifest.json", b"gone")
    files.ensure(revision)
    files_in(tmp_path, store.server.access).ensure(revision)
    files.remove(revision.served)
    assert files.names() == frozenset()
    refused(files, revision, "ManifestDiffers")


def test_a_run_that_has_published_nothing(store: Store, tmp_path: Path) -> None:
    revision = AdapterRevision(served="sql-00000000", uri=f"s3://{store.bucket}/nothing", sha256="0" * 64)
    refused(files_in(tmp_path, store.server.access), revision, "ManifestMissing", f"{revision.uri}/manifest.json")


def test_another_manifest_than_the_pinned_one(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql").model_copy(update={"sha256": "0" * 64})
    found = sha256(store.read(revision, "manifest.json"))
    refused(files_in(tmp_path, store.server.access), revision, "ManifestDiffers", found, "0" * 64)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": "v2"}'])
def test_a_manifest_that_is_none(store: Store, tmp_path: Path, content: bytes) -> None:
    revision = store.publish("sql")
    store.overwrite(revision, "manifest.json", content)
    pinned = revision.model_copy(update={"sha256": sha256(content)})
    refused(files_in(tmp_path, store.server.access), pinned, "ManifestInvalid", revision.uri)


@pytest.mark.parametrize("path", ["../x.json", "adapter/../../x.safetensors", "/etc/x.json"])
def test_a_manifest_that_leads_out_of_the_folder(store: Store, tmp_path: Path, path: str) -> None:
    revision = store.publish("sql")
    manifest = store.manifest(revision)
    stray = FileDigest(path=path, sha256=sha256(b""), size=0)
    content = manifest.model_copy(update={"files": [*manifest.files, stray]}).to_bytes()
    store.overwrite(revision, "manifest.json", content)
    pinned = revision.model_copy(update={"sha256": sha256(content)})
    refused(files_in(tmp_path, store.server.access), pinned, "ManifestInvalid", path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"servable": Servable(lora=False, reason="it has new embeddings")}, "it has new embeddings"),
        ({"kind": "model"}, "it is a model"),
    ],
)
def test_what_cannot_be_served(store: Store, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    revision = store.publish("sql", **changes)
    refused(files_in(tmp_path, store.server.access), revision, "NotServable", words, revision.uri)


@pytest.mark.parametrize("absent", ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"])
def test_an_adapter_without_its_files(store: Store, tmp_path: Path, absent: str) -> None:
    contents = adapter_contents(b"weights")
    del contents[absent]
    contents["adapter/adapter_model.bin"] = b"a pickle"
    revision = store.publish("sql", files=contents)
    refused(files_in(tmp_path, store.server.access), revision, "NotServable", "safetensors")


def test_files_below_or_hidden_are_not_taken(store: Store, tmp_path: Path) -> None:
    more = {"adapter/checkpoint/a.json": b"{}", "adapter/.lorikeet.json": b"{}", "adapterx/a.json": b"{}"}
    revision = store.publish("sql", files={**adapter_contents(b"weights"), **more})
    files = files_in(tmp_path, store.server.access)
    files.ensure(revision)
    found = {path.name for path in files.folder(revision.served).iterdir()}
    assert found == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", ".lorikeet.json"}


def test_a_rank_that_the_engine_does_not_take(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql", rank=64)
    words = ("rank 64", "at most 16", "spec.engine.vllm.maxLoraRank")
    refused(files_in(tmp_path, store.server.access), revision, "RankTooHigh", *words)
    files_in(tmp_path, store.server.access, max_lora_rank=64).ensure(revision)


def test_an_adapter_of_another_base_model(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql", base_model=base_digest(b"other weights", "hf://other/model"))
    words = ("hf://other/model", "s3://models/tiny")
    refused(files_in(tmp_path, store.server.access), revision, "BaseModelDiffers", *words)


def test_the_same_base_model_from_elsewhere(store: Store, tmp_path: Path) -> None:
    """Weights decide, and not where they lie."""
    revision = store.publish("sql", base_model=base_digest(uri="hf://upstream/tiny"))
    files_in(tmp_path, store.server.access).ensure(revision)


@pytest.mark.parametrize("content", [None, b"shorter"])
def test_a_file_that_is_gone_or_another_one(store: Store, tmp_path: Path, content: bytes | None) -> None:
    revision = store.publish("sql")
    path = "adapter/adapter_model.safetensors"
    if content is None:
        store.server.client().delete_object(Bucket=store.bucket, Key=store.key(revision, path))
    else:
        store.overwrite(revision, path, content)
    files = files_in(tmp_path, store.server.access)
    refused(files, revision, "FileCorrupt", f"{revision.uri}/{path}")
    assert list((tmp_path / "adapters").iterdir()) == []


def test_a_store_that_does_not_answer_may_come_back(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    told = failure(files_in(tmp_path, StorageAccess(endpoint=f"http://127.0.0.1:{free_port()}")), revision)
    assert (told.reason, told.retryable) == ("StorageUnreachable", True)


def test_a_store_that_refuses_names_the_field_to_correct(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = store.publish("sql")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused(
        files_in(tmp_path, store.server.access), revision, "StorageRefused", revision.uri, "spec.adapters[].from.uri"
    )


def test_a_disk_without_room(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    revision = store.publish("sql")
    monkeypatch.setattr("lorikeet_storage.s3.write_file", is_full)
    refused(files_in(tmp_path, store.server.access), revision, "OutOfDisk", "compute.scratch")


def test_a_defect_is_told_as_one(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(S3, "download", breaks)
    with pytest.raises(KeyError) as caught:
        files_in(tmp_path, store.server.access).ensure(store.publish("sql"))
    assert failure_of(caught.value).reason == "InternalError"


def test_files_that_rot_on_disk_are_fetched_anew_by_the_next_process(store: Store, tmp_path: Path) -> None:
    revision, files = store.publish("sql"), files_in(tmp_path, store.server.access)
    files.ensure(revision)
    config = files.folder(revision.served) / "adapter_config.json"
    sound = config.read_bytes()
    config.write_bytes(json.dumps({"r": 9}).encode())
    files_in(tmp_path, store.server.access).ensure(revision)
    assert config.read_bytes() == sound
