"""A real S3 server for tests: versitygw over a folder, on a free loopback port, with keys of its own."""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from boto3.session import Session
from botocore.config import Config

from e2e.cluster import components
from lorikeet_api.contract import StorageAccess

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

START_SECONDS = 20
_numbers = count(1)


class S3Server:
    """One running server. Buckets are folders below `root`, objects are files in them."""

    def __init__(self, root: Path, *, cert: Path | None = None, key: Path | None = None, port: int = 0) -> None:
        self.root = root
        self.data = root / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.access_key = "test" + secrets.token_hex(6)
        self.secret_key = secrets.token_hex(16)
        self._tls = ["--cert", str(cert), "--key", str(key)] if cert else []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """URL of the server."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def access(self) -> StorageAccess:
        """How Lorikeet reaches it."""
        return StorageAccess(endpoint=self.endpoint)

    @property
    def env(self) -> dict[str, str]:
        """Credentials for a process that uses it."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def client(self) -> "S3Client":
        """Return a plain boto3 client, so that tests look at the store past Lorikeet's code."""
        return self._client

    @cached_property
    def _client(self) -> "S3Client":
        return Session(self.access_key, self.secret_key).client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the server; after `stop` on the same port and data."""
        binary = components.build(["versitygw"], print)["versitygw"]
        command = [str(binary), "--quiet", "--port", f"127.0.0.1:{self.port}", *self._tls, "posix", str(self.data)]
        keys = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        with (self.root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **keys}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._await_port()
        except BaseException:
            self.stop()
            raise

    def _await_port(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError("versitygw did not start: " + (self.root / "server.log").read_text()[-2000:])

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Store an object past Lorikeet's code, making the bucket if need be; return its URI."""
        client = self.client()
        if not (self.data / bucket).is_dir():
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=data)
        return f"s3://{bucket}/{key}"

    def keys(self, bucket: str) -> list[str]:
        """Return all keys of a bucket, in order."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


def free_port() -> int:
    """Return a port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def credentials(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> Iterator[S3Server]:
    """Put the server's keys into this process's environment, and nothing else of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    yield server


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server for a module's tests, so that two modules may name their buckets alike."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The module's server, with its keys in the environment."""
    with credentials(monkeypatch, s3_server) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A bucket of the test's own."""
    name = f"bucket-{next(_numbers)}"
    s3.client().create_bucket(Bucket=name)
    return name
