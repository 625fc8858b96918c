"""What the URIs of a ModelDeployment are found to mean."""

import json
from pathlib import Path

import pytest

from lorikeet_agent.serving.resolve import resolve, to_message
from lorikeet_api.contract import TERMINATION_LIMIT, LatestPointer, StorageAccess
from lorikeet_api.serving import AdapterRevision, Found, ResolveContract, ResolveRecord, Unresolved
from lorikeet_api.training import ModelSource
from lorikeet_storage import StorageError, survey_model
from tests.s3 import free_port
from tests.unit.agent.serving.pod import Store


def find(store: Store, uri: str, sha256: str | None = None) -> Found:
    asked = Unresolved(name="sql", uri=uri, sha256=sha256)
    record = resolve(ResolveContract(adapters=[asked], storage=store.server.access))
    assert (record.reason, record.pin) == ("Resolved", "")
    (found,) = record.adapters
    return found


def output_of(revision: AdapterRevision) -> str:
    return revision.uri.rpartition("/")[0]


def run_of(revision: AdapterRevision) -> str:
    return revision.uri.rpartition("/")[2]


def is_found(found: Found, run_id: str, sha256: str) -> None:
    assert (found.reason, found.run_id, found.sha256) == ("", run_id, sha256), found.message


def is_refused(found: Found, reason: str, *words: str) -> None:
    assert (found.reason, found.run_id, found.sha256) == (reason, "", "")
    for word in words:
        assert word in found.message


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_runs_own_folder(store: Store, slash: str) -> None:
    revision = store.publish("sql")
    for wanted in (None, revision.sha256):
        is_found(find(store, revision.uri + slash, wanted), "", revision.sha256)


def test_an_output_means_its_newest_run(store: Store) -> None:
    old, new = store.publish("sql"), store.publish("sql")
    assert output_of(old) == output_of(new)
    for wanted in (None, new.sha256):
        is_found(find(store, output_of(new), wanted), run_of(new), new.sha256)


def test_an_older_run_of_an_output_is_found_by_its_sha256(store: Store) -> None:
    old, _ = store.publish("sql"), store.publish("sql")
    is_found(find(store, output_of(old), old.sha256), run_of(old), old.sha256)


@pytest.mark.parametrize("pointer", [None, b"{", b'{"runId": "../x", "sha256": "0"}'])
def test_what_is_pinned_is_found_whatever_the_pointer_says(store: Store, pointer: bytes | None) -> None:
    revision = store.publish("sql")
    if pointer is None:
        store.server.client().delete_object(Bucket=store.bucket, Key="sql/latest.json")
    else:
        store.server.put(store.bucket, "sql/latest.json", pointer)
    is_found(find(store, output_of(revision), revision.sha256), run_of(revision), revision.sha256)


@pytest.mark.parametrize("wanted", [None, "0" * 64])
def test_where_nothing_is_it_is_said_what_was_looked_for(store: Store, wanted: str | None) -> None:
    uri = f"s3://{store.bucket}/nothing"
    is_refused(find(store, uri, wanted), "ManifestMissing", uri, "manifest.json", "latest.json", "publish")


def test_a_bucket_that_does_not_exist(store: Store) -> None:
    is_refused(find(store, "s3://no-such-bucket/x"), "ManifestMissing", "s3://no-such-bucket/x")


def test_a_sha256_that_no_run_has(store: Store) -> None:
    revision = store.publish("sql")
    for uri in (revision.uri, output_of(revision)):
        is_refused(find(store, uri, "0" * 64), "ManifestDiffers", "0" * 64)


def test_a_pointer_that_names_no_run(store: Store) -> None:
    revision = store.publish("sql")
    for content in (b"{", b"{}", b'{"runId": "../x", "sha256": "0"}'):
        store.server.put(store.bucket, "sql/latest.json", content)
        is_refused(find(store, output_of(revision)), "ManifestInvalid", "latest.json")


def test_a_pointer_to_a_run_without_a_manifest(store: Store) -> None:
    revision = store.publish("sql")
    store.server.client().delete_object(Bucket=store.bucket, Key=store.key(revision, "manifest.json"))
    is_refused(find(store, output_of(revision)), "ManifestMissing", revision.uri)


def test_a_manifest_that_is_not_the_one_of_the_pointer(store: Store) -> None:
    revision = store.publish("sql")
    pointer = LatestPointer(run_id=run_of(revision), sha256="0" * 64)
    store.server.put(store.bucket, "sql/latest.json", json.dumps(pointer.to_wire()).encode())
    is_refused(find(store, output_of(revision)), "ManifestDiffers", revision.uri)


def test_a_store_that_refuses_is_a_matter_of_that_adapter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = store.publish("sql")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    is_refused(find(store, revision.uri), "StorageRefused")


def test_one_adapter_that_is_not_there_hides_no_other(store: Store) -> None:
    revision = store.publish("sql")
    asked = [
        Unresolved(name="gone", uri=f"s3://{store.bucket}/gone"),
        Unresolved(name="here", uri=revision.uri),
    ]
    record = resolve(ResolveContract(adapters=asked, storage=store.server.access))
    assert [(each.name, each.reason) for each in record.adapters] == [("gone", "ManifestMissing"), ("here", "")]


def test_a_store_that_is_away_is_asked_again_by_another_pod(store: Store) -> None:
    away = StorageAccess(endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageError) as caught:
        resolve(ResolveContract(adapters=[Unresolved(name="sql", uri="s3://bucket/x")], storage=away), 0.1)
    assert caught.value.retryable


def test_a_model_is_pinned(store: Store) -> None:
    for name in ("config.json", "model.safetensors"):
        store.server.put(store.bucket, f"base/{name}", b"{}")
    model = ModelSource(uri=f"s3://{store.bucket}/base")
    record = resolve(ResolveContract(model=model, storage=store.server.access))
    assert record.pin == survey_model(model, store.server.access).pin


def test_a_model_that_is_not_there_is_an_error(store: Store) -> None:
    with pytest.raises(StorageError) as caught:
        resolve(ResolveContract(model=ModelSource(uri=f"s3://{store.bucket}/no"), storage=store.server.access))
    assert caught.value.reason == "ModelNotFound"


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f426", '"', "\x00"])
def test_a_record_is_shortened_to_what_fits(letter: str) -> None:
    found = [
        Found(name="a" * 40, reason="StorageUnreachable", message=letter * 320),
        Found(name="b" * 40, run_id="0" * 16, sha256="0" * 64),
    ]
    record = ResolveRecord(reason="Resolved", message=letter * 600, pin="0" * 64, adapters=found * 4)
    message = to_message(record)
    assert len(message) <= TERMINATION_LIMIT
    read = ResolveRecord.model_validate_json(message)
    assert [each.sha256 for each in read.adapters] == [each.sha256 for each in record.adapters]
    assert read.adapters[0].message.startswith(letter)


def test_a_record_that_fits_is_left_as_it_is(tmp_path: Path) -> None:
    record = ResolveRecord(reason="Resolved", adapters=[Found(name="a", reason="ManifestMissing", message="x" * 320)])
    assert ResolveRecord.model_validate_json(to_message(record)) == record
