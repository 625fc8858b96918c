"""What a real server does not do on demand: old stores, and answers without an end."""

import io
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.stub import Stubber

from lorikeet_api.contract import StorageAccess
from lorikeet_storage import StorageError
from lorikeet_storage.s3 import S3, ObjectInfo
from lorikeet_storage.uri import S3Location

LOCATION = S3Location("bucket", "run/manifest.json")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def store() -> S3:
    return S3(StorageAccess(endpoint="http://127.0.0.1:9"), "output")


@pytest.fixture
def stub(store: S3) -> Iterator[Stubber]:
    with Stubber(store._client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


PUT = {"Bucket": "bucket", "Key": "run/manifest.json", "Body": b"x"}
HEAD = {"Bucket": "bucket", "Key": "run/manifest.json"}


@pytest.mark.parametrize("code", ["PreconditionFailed", "ConditionalRequestConflict"])
def test_put_if_absent_is_one_conditional_put(store: S3, stub: Stubber, code: str) -> None:
    stub.add_response("put_object", {}, {**PUT, "IfNoneMatch": "*"})
    assert store.put_if_absent(LOCATION, b"x")
    stub.add_client_error("put_object", code, expected_params={**PUT, "IfNoneMatch": "*"})
    assert not store.put_if_absent(LOCATION, b"x")


def test_a_store_without_conditional_puts_is_asked_first(store: S3, stub: Stubber) -> None:
    stub.add_client_error("put_object", "NotImplemented", expected_params={**PUT, "IfNoneMatch": "*"})
    stub.add_client_error("head_object", "404", expected_params=HEAD)
    stub.add_response("put_object", {}, PUT)
    assert store.put_if_absent(LOCATION, b"x")
    stub.add_client_error("put_object", "NotImplemented", expected_params={**PUT, "IfNoneMatch": "*"})
    stub.add_response("head_object", {"ContentLength": 1}, HEAD)
    assert not store.put_if_absent(LOCATION, b"x")


def test_a_refused_put_is_no_absence(store: S3, stub: Stubber) -> None:
    stub.add_client_error("put_object", "AccessDenied", http_status_code=403)
    with pytest.raises(StorageError, match="s3:PutObject"):
        store.put_if_absent(LOCATION, b"x")


def test_a_stored_size_that_differs_is_said(store: S3, stub: Stubber) -> None:
    stub.add_response("head_object", {"ContentLength": 6})
    with pytest.raises(StorageError, match="7 bytes were sent, 6 bytes stored") as caught:
        store.expect_size(LOCATION, 7)
    assert caught.value.retryable


def test_a_small_file_that_is_huge_is_not_read(store: S3, stub: Stubber) -> None:
    stub.add_response("head_object", {"ContentLength": 1 << 40})
    with pytest.raises(StorageError, match="1099511627776 bytes"):
        store.read(LOCATION)


def test_a_store_that_ignores_ranges_is_said(store: S3, stub: Stubber) -> None:
    stub.add_response("get_object", {"ContentLength": 10, "Body": io.BytesIO(b"0123456789")})
    with pytest.raises(StorageError, match="10 bytes, 4 were asked for"):
        store._read_range(LOCATION, ObjectInfo("x", 10, ""), 0, memoryview(bytearray(4)))


def test_addresses_are_path_style_and_the_region_has_a_default() -> None:
    store = S3(StorageAccess(endpoint="http://s3.test:9"), "output")
    assert vars(store._client.meta.config)["_user_provided_options"]["s3"] == {"addressing_style": "path"}
    url = store._client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "key"})
    assert url.startswith("http://s3.test:9/bucket/key?")
    assert store._client.meta.region_name == "us-east-1"
    assert S3(StorageAccess(region="eu-west-1"), "model")._client.meta.region_name == "eu-west-1"


class _Silent(BaseHTTPRequestHandler):
    """Promises 100 bytes and sends none."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_an_answer_without_a_body_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorikeet_storage.s3.READ_ATTEMPTS", 3)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = S3(StorageAccess(endpoint=f"http://127.0.0.1:{server.server_port}"), "data")
        with pytest.raises(StorageError, match="breaks off at byte 0, 3 times") as caught:
            store.download([(LOCATION, ObjectInfo("x", 100, ""), tmp_path / "x.jsonl")])
        server.shutdown()
    assert caught.value.retryable
    assert not list(tmp_path.iterdir())
