"""What is in an engine's pod before the engine starts."""

import errno
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lorikeet_agent.serving import guard
from lorikeet_agent.serving.base import fetch
from lorikeet_agent.serving.manifest import read_digest
from lorikeet_agent.serving.settings import Settings
from lorikeet_api.contract import EXIT_BAD_REQUEST, EXIT_DONE, EXIT_INTERNAL
from lorikeet_api.serving import GUARD_MODULE, EngineContract
from lorikeet_api.training import ModelSource
from lorikeet_run.errors import RunError
from lorikeet_storage import StorageError, survey_model
from tests.s3 import S3Server, credentials, free_port
from tests.unit.agent.serving.pod import WEIGHTS, Store, contract, settings_in, sha256


def put_model(store: Store, weights: bytes = WEIGHTS) -> ModelSource:
    for name, content in (("config.json", b"{}"), ("model.safetensors", weights), ("model.bin", b"a pickle")):
        store.server.put(store.bucket, f"base/{name}", content)
    return ModelSource(uri=f"s3://{store.bucket}/base")


def told(store: Store, **changes: Any) -> EngineContract:
    model = put_model(store)
    pin = survey_model(model, store.server.access).pin
    return contract(store.server.access, **{"model": model, "pin": pin, **changes})


def settings(tmp_path: Path, of: EngineContract) -> Settings:
    model = tmp_path / "cache" / of.pin if of.cached else tmp_path / "model"
    return settings_in(tmp_path, of, model=model)


@pytest.mark.parametrize("cached", [False, True])
def test_the_model_is_there_with_its_digest(store: Store, tmp_path: Path, cached: bool) -> None:
    pod = settings(tmp_path, told(store, cached=cached))
    record, code = fetch(pod)
    assert (record.reason, code) == ("Fetched", EXIT_DONE)
    assert (pod.model / "model.safetensors").read_bytes() == WEIGHTS
    assert not (pod.model / "model.bin").exists()
    digest = read_digest(pod.model)
    assert digest.uri == pod.contract.model.uri
    assert {file.path: file.sha256 for file in digest.files}["model.safetensors"] == sha256(WEIGHTS)


def test_a_cached_model_needs_no_store(store: Store, tmp_path: Path) -> None:
    pod = settings(tmp_path, told(store, cached=True))
    fetch(pod)
    store.server.client().delete_object(Bucket=store.bucket, Key="base/model.safetensors")
    assert fetch(pod)[1] == EXIT_DONE


def test_a_container_that_is_started_again_begins_anew(store: Store, tmp_path: Path) -> None:
    pod = settings(tmp_path, told(store))
    fetch(pod)
    (pod.model / "model.safetensors").write_bytes(b"half")
    fetch(pod)
    assert (pod.model / "model.safetensors").read_bytes() == WEIGHTS


def test_the_guard_is_a_module_of_its_own(store: Store, tmp_path: Path) -> None:
    pod = settings(tmp_path, told(store))
    fetch(pod)
    spec = importlib.util.spec_from_file_location(GUARD_MODULE, pod.guard / f"{GUARD_MODULE}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.ALLOWED == guard.ALLOWED
    assert callable(module.Guard)


@pytest.mark.parametrize("cached", [False, True])
def test_a_model_that_has_changed_is_not_served(store: Store, tmp_path: Path, cached: bool) -> None:
    of = told(store, cached=cached)
    put_model(store, b"other weights")
    with pytest.raises(RunError, match="create another ModelDeployment") as caught:
        fetch(settings(tmp_path, of))
    assert caught.value.reason == "SourceChanged"


def test_a_model_that_is_gone_is_named(store: Store, tmp_path: Path) -> None:
    of = told(store, model=ModelSource(uri=f"s3://{store.bucket}/nothing"))
    with pytest.raises(StorageError, match=f"s3://{store.bucket}/nothing"):
        fetch(settings(tmp_path, of))


@pytest.mark.parametrize(("cached", "words"), [(False, "compute.scratch"), (True, "model cache")])
def test_a_disk_without_room(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, words: str
) -> None:
    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lorikeet_storage.s3.write_file", is_full)
    with pytest.raises(RunError, match=words) as caught:
        fetch(settings(tmp_path, told(store, cached=cached)))
    assert caught.value.reason == "OutOfDisk"


def test_an_engine_that_is_started_with_its_adapters_has_them(store: Store, tmp_path: Path) -> None:
    revision = store.publish("sql")
    pod = settings(tmp_path, told(store, hot_loading=False, adapters=[revision]))
    assert fetch(pod)[1] == EXIT_DONE
    assert (pod.adapters / revision.served / "adapter_model.safetensors").is_file()


def test_an_engine_is_not_started_without_one_of_its_adapters(store: Store, tmp_path: Path) -> None:
    good, bad = store.publish("good"), store.publish("bad", rank=64)
    record, code = fetch(settings(tmp_path, told(store, hot_loading=False, adapters=[good, bad])))
    assert (record.reason, record.retryable, code) == ("RankTooHigh", False, EXIT_BAD_REQUEST)
    assert bad.served in record.message


def test_an_adapters_store_that_is_away_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with S3Server(tmp_path / "s3", port=free_port()) as server, credentials(monkeypatch, server):
        server.client().create_bucket(Bucket="away")
        store = Store(server, "away", tmp_path / "runs")
        revision = store.publish("sql")
        pod = settings(tmp_path / "pod", told(store, cached=True, hot_loading=False, adapters=[revision]))
        fetch(pod.__class__(**{**pod.__dict__, "contract": pod.contract.model_copy(update={"adapters": []})}))
        server.stop()
        record, code = fetch(pod, patience_seconds=0.1)
    assert (record.reason, record.retryable, code) == ("StorageUnreachable", True, EXIT_INTERNAL)
