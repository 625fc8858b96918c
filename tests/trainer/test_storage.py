"""lorikeet_storage against a real S3 server."""

import datetime
import hashlib
import ipaddress
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lorikeet_api.contract import StorageAccess
from lorikeet_api.training import DataSource, ModelSource
from lorikeet_storage import StorageError, fetch_data, fetch_model
from lorikeet_storage.s3 import PART, S3
from lorikeet_storage.uri import parse_s3
from tests.s3 import S3Server, credentials, free_port

pytestmark = pytest.mark.trainer
GIB = 1 << 30
LIMIT = 256 << 20


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def error_of(uri: str, into: Path, access: StorageAccess) -> StorageError:
    with pytest.raises(StorageError) as caught:
        fetch_data(DataSource(uri=uri), into, access)
    return caught.value


# --- reading


def test_fetches_what_a_model_needs_and_no_pickle(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "merges.txt": b"a b",
        "chat_template.jinja": b"{{ x }}",
        "model.safetensors": b"weights",
    }
    others = {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"again",
        "training_args.bin": b"pickle",
        "onnx/model.json": b"{}",
        "run.py": b"x",
    }
    for name, data in {**files, **others}.items():
        s3.put(bucket, f"m/tiny/{name}", data)
    s3.put(bucket, "m/tiny-other/config.json", b"not mine")

    fetched = fetch_model(ModelSource(uri=f"s3://{bucket}/m/tiny"), tmp_path / "model", s3.access)

    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == files
    assert {(f.path, f.sha256, f.size) for f in fetched.digest.files} == {
        (name, sha256(data), len(data)) for name, data in files.items()
    }


def test_model_without_config_names_what_was_found(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, "m/weights.safetensors", b"x")
    with pytest.raises(StorageError, match=r"model path without a config.*found weights\.safetensors") as caught:
        fetch_model(ModelSource(uri=f"s3://{bucket}/m"), tmp_path, s3.access)
    assert caught.value.reason == "ModelInvalid"


def test_model_that_is_nowhere(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"spec\.model\.uri") as caught:
        fetch_model(ModelSource(uri=f"s3://{bucket}/nowhere"), tmp_path, s3.access)
    assert (caught.value.reason, caught.value.retryable) == ("ModelNotFound", False)


def test_data_one_file_or_all_of_a_folder(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    s3.put(bucket, "d/b.jsonl", b"2")
    s3.put(bucket, "d/a/1.jsonl", b"1")
    for name in ("d/README.md", "d/_delta_log/0.json", "d/.hidden.json"):
        s3.put(bucket, name, b"x")
    s3.put(bucket, "d/empty.jsonl", b"")

    one = fetch_data(DataSource(uri=f"s3://{bucket}/d/b.jsonl"), tmp_path / "one", s3.access)
    whole = fetch_data(DataSource(uri=f"s3://{bucket}/d/"), tmp_path / "whole", s3.access)

    assert [path.read_bytes() for path in one.files] == [b"2"]
    assert [(f.path, f.sha256) for f in whole.digest.files] == [("a/1.jsonl", sha256(b"1")), ("b.jsonl", sha256(b"2"))]
    assert [path.read_bytes() for path in whole.files] == [b"1", b"2"]


def test_listing_goes_on_after_the_first_page(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    names = [f"{number:04}.jsonl" for number in range(1003)]
    (s3.data / bucket / "many").mkdir()
    for name in names:
        (s3.data / bucket / "many" / name).write_text(name)
    fetched = fetch_data(DataSource(uri=f"s3://{bucket}/many"), tmp_path, s3.access)
    assert [path.read_text() for path in fetched.files] == names


def test_a_file_of_several_parts_is_put_together_in_order(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    data = os.urandom(3 * PART + 12345)
    (tmp_path / "up").write_bytes(data)
    uri = f"s3://{bucket}/big.jsonl"
    S3(s3.access, "output").upload(tmp_path / "up", parse_s3(uri))
    fetched = fetch_data(DataSource(uri=uri), tmp_path / "down", s3.access)
    assert fetched.digest.files[0].sha256 == sha256(data)
    assert fetched.files[0].read_bytes() == data


# --- what goes wrong


def test_missing_bucket_and_key(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    error = error_of("s3://no-such-bucket-here/x.jsonl", tmp_path, s3.access)
    assert (error.reason, error.retryable) == ("DataNotFound", False)
    assert f"bucket no-such-bucket-here does not exist at {s3.endpoint}" in error.message
    error = error_of(f"s3://{bucket}/no/such.jsonl", tmp_path, s3.access)
    assert error.reason == "DataNotFound"
    assert f"s3://{bucket}/no/such.jsonl" in error.message


def test_data_that_is_empty_or_of_no_known_kind(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    error = error_of(s3.put(bucket, "empty.jsonl", b""), tmp_path, s3.access)
    assert error.reason == "DataInvalid"
    assert "0 bytes" in error.message
    s3.put(bucket, "d/train.xlsx", b"x")
    error = error_of(f"s3://{bucket}/d", tmp_path, s3.access)
    assert error.reason == "DataInvalid"
    assert "only train.xlsx" in error.message


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    uri = s3.put(bucket, "x.jsonl", b"{}")
    monkeypatch.setenv(name, "wrong")
    error = error_of(uri, tmp_path, s3.access)
    assert (error.reason, error.retryable) == ("StorageRefused", False)
    assert "does not accept the credentials" in error.message
    assert "storage.secretName" in error.message


def test_no_credentials(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    error = error_of(f"s3://{bucket}/x.jsonl", tmp_path, s3.access)
    assert error.reason == "StorageRefused"
    assert "no S3 credentials" in error.message


@pytest.mark.parametrize(
    ("host", "cause"), [("127.0.0.1", "refuses connections"), ("nowhere.invalid", "not known to DNS")]
)
def test_endpoint_that_does_not_answer_is_said_within_seconds(
    s3: S3Server, tmp_path: Path, host: str, cause: str
) -> None:
    began = time.monotonic()
    error = error_of("s3://some-bucket/x.jsonl", tmp_path, StorageAccess(endpoint=f"http://{host}:{free_port()}"))
    assert time.monotonic() - began < 20
    assert (error.reason, error.retryable) == ("StorageUnreachable", True)
    assert cause in error.message


def test_endpoint_that_is_no_url(s3: S3Server, tmp_path: Path) -> None:
    error = error_of("s3://some-bucket/x.jsonl", tmp_path, StorageAccess(endpoint="s3:7070"))
    assert error.reason == "StorageRefused"
    assert "'s3:7070' is not a URL" in error.message


class CuttingProxy:
    """Passes TCP through, and cuts each of the first `cuts` connections after `after` bytes of answer."""

    def __init__(self, target: int, *, cuts: int, after: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.target, self.cuts, self.after = target, cuts, after
        self.cut = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answer: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
                passed += len(data)
                if answer and passed > self.after and self.cut < self.cuts:
                    self.cut += 1
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("size", [PART // 2, 3 * PART + 7])
def test_a_connection_that_breaks_is_taken_up_again(s3: S3Server, bucket: str, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    uri = s3.put(bucket, "data.jsonl", data)
    proxy = CuttingProxy(s3.port, cuts=2, after=PART // 8)
    fetched = fetch_data(DataSource(uri=uri), tmp_path, StorageAccess(endpoint=f"http://127.0.0.1:{proxy.port}"))
    proxy.listener.close()
    assert proxy.cut >= 2
    assert fetched.digest.files[0].sha256 == sha256(data)


def test_an_object_that_changes_while_it_is_read(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    uri = s3.put(bucket, "data.jsonl", b"first")
    location, store = parse_s3(uri), S3(s3.access, "data")
    before = store.head(location)
    assert before is not None
    s3.put(bucket, "data.jsonl", b"other")
    with pytest.raises(StorageError, match="changed while it was read") as caught:
        store.download([(location, before, tmp_path / "data.jsonl")])
    assert caught.value.reason == "DataInvalid"


# --- memory

READER = """
import sys, time
from pathlib import Path
from lorikeet_api.contract import StorageAccess
from lorikeet_api.training import DataSource
from lorikeet_storage import fetch_data
from lorikeet_storage.s3 import S3
from lorikeet_storage.uri import parse_s3
uri, endpoint, into, cgroup = sys.argv[1:]
if cgroup:
    Path(cgroup, "cgroup.procs").write_text("0")
access = StorageAccess(endpoint=endpoint)
began = time.monotonic()
got = fetch_data(DataSource(uri=uri), Path(into), access)
down = time.monotonic() - began
began = time.monotonic()
S3(access, "output").upload(got.files[0], parse_s3(uri + ".copy"))
up = time.monotonic() - began
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
file = got.digest.files[0]
print(file.sha256, int(peak) << 10, int(file.size / down / 1e6), int(file.size / up / 1e6))
"""


@contextmanager
def memory_cgroup(limit: int) -> Iterator[str]:
    """Yield a cgroup (v1 or v2) that holds its processes, page cache included, to `limit` bytes; "" without."""
    for base, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = base / f"lorikeet-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / name).exists():
                (group / name).write_text(str(limit))
                yield str(group)
                return
        except PermissionError:
            continue
        finally:
            group.rmdir()
    yield ""


@pytest.mark.timeout(240)
def test_two_gibibytes_pass_within_256_mebibytes(
    s3: S3Server, bucket: str, tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    # A sparse file costs no disk; a mark in each part shows that no two parts change places.
    path = s3.data / bucket / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(2 * GIB)
        for start in range(0, 2 * GIB, PART):
            file.seek(start + 11)
            file.write(start.to_bytes(8, "big"))
    with path.open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()

    with memory_cgroup(LIMIT) as cgroup:
        done = subprocess.run(
            [sys.executable, "-c", READER, f"s3://{bucket}/huge.jsonl", s3.endpoint, str(tmp_path / "down"), cgroup],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    digest, peak, down, up = done.stdout.split()
    record_testsuite_property(
        "2 GiB", f"{down} MB/s down, {up} MB/s up, peak {int(peak) >> 20} MiB, cgroup {cgroup or 'none'}"
    )
    assert digest == expected
    assert int(peak) < LIMIT
    assert (s3.data / bucket / "huge.jsonl.copy").stat().st_size == 2 * GIB


# --- a certificate of one's own


@pytest.fixture
def tls_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s3 of a test")])
    now = datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "tls.crt").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with (
        S3Server(tmp_path / "s3", cert=tmp_path / "tls.crt", key=tmp_path / "tls.key") as server,
        credentials(monkeypatch, server),
    ):
        (server.data / "secure").mkdir()
        (server.data / "secure" / "x.jsonl").write_bytes(b"{}")
        yield server


def test_own_ca(tls_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://secure/x.jsonl"
    error = error_of(uri, tmp_path / "in", tls_server.access)
    assert error.reason == "StorageUnreachable"
    assert "not trusted" in error.message
    assert "storage.caConfigMapName" in error.message

    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.crt"))
    error = error_of(uri, tmp_path / "in", tls_server.access)
    assert error.reason == "StorageRefused"
    assert "none.crt" in error.message

    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "tls.crt"))
    assert fetch_data(DataSource(uri=uri), tmp_path / "in", tls_server.access).files[0].read_bytes() == b"{}"
