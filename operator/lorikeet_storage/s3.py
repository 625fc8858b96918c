"""S3 with bounded memory: ranged parallel downloads that survive broken connections, uploads, conditional puts.

Credentials come from the environment as boto3 finds them (AWS_*, a projected web identity token, a profile);
AWS_CA_BUNDLE and HTTPS_PROXY are honoured. Works with stores other than AWS: path-style addresses where an
endpoint is given, and only those checksums that the protocol demands.
"""

import hashlib
import os
import random
import ssl
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Final

import botocore.exceptions as aws
import botocore.session
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore.config import Config
from botocore.loaders import Loader

from lorikeet_api.contract import StorageAccess
from lorikeet_storage.errors import Place, Role, Unreachable
from lorikeet_storage.translate import bad_ca_bundle, bad_endpoint, no_credentials, translated
from lorikeet_storage.uri import S3Location

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

MIB: Final = 1 << 20
PART: Final = 8 * MIB
"""Bytes asked for at once."""
PARTIAL: Final = ".part"
"""Ending of a file that is not whole yet."""
WORKERS: Final = 4
WINDOW: Final = 6
"""Parts in memory at most, being read or waiting for their turn to be hashed: 48 MiB."""
READ_ATTEMPTS: Final = 6
"""Attempts to go on with a part without a byte more, before the connection is given up."""
CONNECT_TIMEOUT: Final = 5
READ_TIMEOUT: Final = 30
_TRANSFER: Final = TransferConfig(
    multipart_threshold=16 * MIB, multipart_chunksize=16 * MIB, max_concurrency=WORKERS, max_io_queue=8
)


class _Descriptions(Loader):
    """botocore's descriptions of S3, read once in a process: each session would read them anew, for 0.1 s."""

    @property
    def search_paths(self) -> list[str]:
        """Where they are. A copy: each of boto3's sessions adds a folder, of what is not used here."""
        return list(super().search_paths)


_DESCRIPTIONS: Final = _Descriptions()


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a listing."""

    name: str
    """Key below the location that was listed."""
    size: int
    """Bytes."""
    etag: str


class S3:
    """A connection to one store for one role. All methods raise StorageError."""

    def __init__(self, access: StorageAccess, role: Role) -> None:
        self._access = access
        self._role = role
        self._endpoint = access.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._client = self._connect()

    def place(self, location: S3Location) -> Place:
        """Return `location` as the place of an error message."""
        return Place(str(location), self._role, self._endpoint)

    def _connect(self) -> "S3Client":
        place = Place("S3", self._role, self._endpoint)
        region = self._access.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        check_ca_bundle(os.environ.get("AWS_CA_BUNDLE"))
        with translated(place):
            session = _session()
            if session.get_credentials() is None:
                raise no_credentials(place)
            try:
                return session.client(
                    "s3",
                    endpoint_url=self._endpoint,
                    region_name=region or "us-east-1",
                    config=Config(
                        connect_timeout=CONNECT_TIMEOUT,
                        read_timeout=READ_TIMEOUT,
                        retries={"mode": "standard", "total_max_attempts": 4},
                        s3={"addressing_style": "path" if self._endpoint else "auto"},
                        max_pool_connections=2 * WORKERS,
                        # Newer botocore sends trailing checksums, which many S3-compatible stores refuse.
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                    ),
                )
            except ValueError as error:  # what botocore raises for an endpoint that is no URL
                raise bad_endpoint(place) from error

    def objects(self, location: S3Location, *, recursive: bool = True) -> Iterator[ObjectInfo]:
        """Yield the objects below `location`, page by page in the order of their keys, without folder markers."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=location.bucket, Prefix=location.prefix, Delimiter="" if recursive else "/"
        )
        with translated(self.place(location)):
            for page in pages:
                for entry in page.get("Contents", []):
                    name = entry["Key"][len(location.prefix) :]
                    if name and not name.endswith("/"):
                        yield ObjectInfo(name, entry["Size"], entry.get("ETag", ""))

    def head(self, location: S3Location) -> ObjectInfo | None:
        """Return what the store says about one object, or None if it is absent."""
        with translated(self.place(location)):
            try:
                found = self._client.head_object(Bucket=location.bucket, Key=location.key)
            except aws.ClientError as error:
                if _code(error) in ("404", "NoSuchKey", "NotFound"):
                    return None
                raise
            return ObjectInfo(location.key.rpartition("/")[2], found["ContentLength"], found.get("ETag", ""))

    def read(self, location: S3Location, limit: int = 16 * MIB) -> bytes | None:
        """Return a small object's bytes, or None if it is absent. More than `limit` bytes are Invalid."""
        place = self.place(location)
        info = self.head(location)
        if info is None:
            return None
        if info.size > limit:
            raise place.invalid(f"{location} has {info.size} bytes, at most {limit} were expected: it is no such file")
        with translated(place):
            return bytes(self._part(location, info, 0, info.size))

    def first(self, location: S3Location, info: ObjectInfo, size: int) -> bytes:
        """Return an object's first `size` bytes, or all that it has."""
        with translated(self.place(location)):
            return bytes(self._part(location, info, 0, min(size, info.size)))

    def download(self, wanted: Sequence[tuple[S3Location, ObjectInfo, Path]]) -> list[str]:
        """Write objects to files and return the sha256 of each, hashed while it streams.

        Memory stays below some WINDOW parts however large the objects are. A file appears under its name only
        when it is whole.
        """
        pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="s3")
        try:
            small = pool.map(self._download_small, [item for item in wanted if item[1].size <= PART])
            return [next(small) if item[1].size <= PART else self._download_large(item, pool) for item in wanted]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _download_small(self, item: tuple[S3Location, ObjectInfo, Path]) -> str:
        location, info, path = item
        with translated(self.place(location)):
            return write_file(path, iter([self._part(location, info, 0, info.size)]))

    def _download_large(self, item: tuple[S3Location, ObjectInfo, Path], pool: ThreadPoolExecutor) -> str:
        location, info, path = item
        with translated(self.place(location)):
            return write_file(path, self._parts(location, info, pool))

    def _parts(self, location: S3Location, info: ObjectInfo, pool: ThreadPoolExecutor) -> Iterator[bytearray]:
        """Yield the object's parts in order while the next ones are being read."""
        pending: deque[Future[bytearray]] = deque()
        try:
            for start in range(0, info.size, PART):
                pending.append(pool.submit(self._part, location, info, start, min(PART, info.size - start)))
                if len(pending) == WINDOW:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _part(self, location: S3Location, info: ObjectInfo, start: int, length: int) -> bytearray:
        """Return `length` bytes from `start`; a connection that breaks is taken up where it broke."""
        data = bytearray(length)
        view = memoryview(data)
        got = fruitless = 0
        while got < length:
            received = self._read_range(location, info, start + got, view[got:])
            got += received
            fruitless = 0 if received else fruitless + 1
            if fruitless == READ_ATTEMPTS:
                raise Unreachable(
                    "StorageUnreachable",
                    f"{location} breaks off at byte {start + got}, {READ_ATTEMPTS} times: check the store",
                    retryable=True,
                )
            if got < length:
                time.sleep(random.uniform(0.1, 0.3) * 2**fruitless)  # noqa: S311 - jitter
        return data

    def _read_range(self, location: S3Location, info: ObjectInfo, start: int, into: memoryview) -> int:
        """Read from `start` into the buffer until it is full or the connection breaks; return the bytes read."""
        request: GetObjectRequestTypeDef = {"Bucket": location.bucket, "Key": location.key}
        if len(into) < info.size:
            request["Range"] = f"bytes={start}-{start + len(into) - 1}"
        if info.etag:
            request["IfMatch"] = info.etag
        try:
            answer = self._client.get_object(**request)
        except aws.ClientError as error:
            if _code(error) in ("PreconditionFailed", "412", "InvalidRange"):
                raise self.place(location).invalid(
                    f"{location} changed while it was read: let it rest, then run again"
                ) from error
            raise
        if answer["ContentLength"] != len(into):
            raise self.place(location).invalid(
                f"{location} came with {answer['ContentLength']} bytes, {len(into)} were asked for: check the store"
            )
        got = 0
        body = answer["Body"]
        try:
            while got < len(into):
                received: int = body.readinto(into[got:])  # type: ignore[arg-type]  # the stubs ask for a file
                if received == 0:
                    break
                got += received
        except (aws.HTTPClientError, aws.IncompleteReadError, OSError):
            pass  # the caller goes on from here
        finally:
            body.close()
        return got

    def upload(self, path: Path, location: S3Location, on_sent: Callable[[int], None] | None = None) -> None:
        """Send a file, in parts if it is large, and check the size that the store then has.

        `on_sent` is called with the bytes that went out since the last call, in several threads; what it raises ends
        the upload.
        """
        place = self.place(location)
        with translated(place):
            try:
                self._client.upload_file(
                    str(path), location.bucket, location.key, _shown_as(path), Callback=on_sent, Config=_TRANSFER
                )
            except S3UploadFailedError as error:
                # boto3 keeps only the text; the cause has the code.
                raise (error.__context__ if isinstance(error.__context__, aws.ClientError) else error) from error
        self.expect_size(location, path.stat().st_size)

    def copy(self, source: S3Location, target: S3Location, size: int) -> None:
        """Copy inside the store, in parts if it is large, and check the size."""
        with translated(self.place(target)):
            self._client.copy({"Bucket": source.bucket, "Key": source.key}, target.bucket, target.key, Config=_TRANSFER)
        self.expect_size(target, size)

    def expect_size(self, location: S3Location, size: int) -> None:
        """Raise Unreachable (retryable) unless the store has `location` with `size` bytes."""
        info = self.head(location)
        if info is None or info.size != size:
            stored = "nothing" if info is None else f"{info.size} bytes"
            raise Unreachable(
                "StorageUnreachable",
                f"{location}: {size} bytes were sent, {stored} stored: check the store",
                retryable=True,
            )

    def put(self, location: S3Location, data: bytes) -> None:
        """Write a small object, replacing what was there."""
        with translated(self.place(location)):
            self._client.put_object(Bucket=location.bucket, Key=location.key, Body=data)

    def put_if_absent(self, location: S3Location, data: bytes) -> bool:
        """Write a small object unless one is there; return whether this call wrote it.

        Atomic where the store knows `If-None-Match`; a store that says NotImplemented is asked first and
        written to then, which leaves a gap of milliseconds.
        """
        with translated(self.place(location)):
            try:
                self._client.put_object(Bucket=location.bucket, Key=location.key, Body=data, IfNoneMatch="*")
            except aws.ClientError as error:
                if _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                    return False
                if _code(error) not in ("NotImplemented", "501"):
                    raise
                if self.head(location) is not None:
                    return False
                self.put(location, data)
            return True

    def abort_uploads(self, location: S3Location) -> None:
        """Drop the parts of uploads below `location` that were never completed: nobody sees them, they are billed."""
        with translated(self.place(location)):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=location.bucket, Prefix=location.prefix):
                for upload in page.get("Uploads", []):
                    self._client.abort_multipart_upload(
                        Bucket=location.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )

    def delete(self, location: S3Location) -> None:
        """Remove one object; one that is absent is no error."""
        with translated(self.place(location)):
            self._client.delete_object(Bucket=location.bucket, Key=location.key)


def _session() -> Session:
    session = botocore.session.Session()
    session.register_component("data_loader", _DESCRIPTIONS)
    return Session(botocore_session=session)


def check_ca_bundle(path: str | None) -> None:
    """Raise StorageError if there is a CA bundle and it cannot be loaded: botocore's own words would mislead."""
    if path:
        try:
            ssl.create_default_context(cafile=None if Path(path).is_dir() else path, capath=path)
        except OSError as error:  # ssl.SSLError is one too
            raise bad_ca_bundle(path, error) from error


def write_file(path: Path, parts: Iterator[bytes | bytearray]) -> str:
    """Write `parts` to `path` and return their sha256; the name appears when the file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")  # others may be writing the same
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _shown_as(path: Path) -> dict[str, str]:
    """Return what the store is to say of a file: a browser saves what it is not told to be a page."""
    kind, _ = guess_type(path.name)
    return {"ContentType": kind} if kind is not None else {}


def _code(error: aws.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
