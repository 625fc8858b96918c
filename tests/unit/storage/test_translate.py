"""Every exception of the libraries becomes a reason, a cause and a next step."""

import errno
import os
from pathlib import Path

import botocore.exceptions as aws
import httpx2
import huggingface_hub.errors as hub
import pytest

from lorikeet_storage import StorageError
from lorikeet_storage.errors import Place
from lorikeet_storage.translate import translate, translated

PLACE = Place("s3://bucket/key", "model", "http://s3:7070")
HUB = Place("hf://org/name", "model")


def client_error(code: str, status: int = 400) -> aws.ClientError:
    return aws.ClientError(
        {"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetObject",
    )


@pytest.mark.parametrize(
    ("code", "status", "reason", "retryable", "words"),
    [
        ("NoSuchBucket", 404, "ModelNotFound", False, "bucket bucket does not exist at http://s3:7070"),
        ("NoSuchKey", 404, "ModelNotFound", False, "s3://bucket/key does not exist"),
        ("404", 404, "ModelNotFound", False, "spec.model.uri"),
        ("AccessDenied", 403, "StorageRefused", False, "s3:ListBucket"),
        ("403", 403, "StorageRefused", False, "denied"),
        ("SignatureDoesNotMatch", 403, "StorageRefused", False, "storage.secretName"),
        ("InvalidAccessKeyId", 403, "StorageRefused", False, "storage.secretName"),
        ("ExpiredToken", 400, "StorageRefused", False, "expired"),
        ("RequestTimeTooSkewed", 403, "StorageRefused", False, "clock"),
        ("AuthorizationHeaderMalformed", 400, "StorageRefused", False, "storage.region"),
        ("PermanentRedirect", 301, "StorageRefused", False, "storage.region"),
        ("QuotaExceeded", 403, "StorageRefused", False, "no room"),
        ("SlowDown", 503, "StorageUnreachable", True, "try again"),
        ("500", 500, "StorageUnreachable", True, "try again"),
        ("SomethingNew", 400, "StorageRefused", False, "SomethingNew: said"),
    ],
)
def test_answers_of_s3(code: str, status: int, reason: str, retryable: bool, words: str) -> None:
    error = translate(client_error(code, status), PLACE)
    assert error is not None
    assert (error.reason, error.retryable) == (reason, retryable)
    assert words in error.message


@pytest.mark.parametrize(
    ("role", "reason"), [("model", "ModelNotFound"), ("data", "DataNotFound"), ("output", "StorageRefused")]
)
def test_an_absence_has_the_reason_of_its_role(role: str, reason: str) -> None:
    error = translate(client_error("NoSuchKey", 404), Place("s3://bucket/key", role))  # type: ignore[arg-type]
    assert error is not None
    assert error.reason == reason


@pytest.mark.parametrize(
    ("exception", "reason", "retryable", "words"),
    [
        (aws.NoCredentialsError(), "StorageRefused", False, "AWS_ACCESS_KEY_ID"),
        (aws.PartialCredentialsError(provider="env", cred_var="x"), "StorageRefused", False, "no S3 credentials"),
        (aws.CredentialRetrievalError(provider="sts", error_msg="x"), "StorageRefused", False, "cannot be had"),
        (
            aws.SSLError(endpoint_url="x", error=Exception("self-signed")),
            "StorageUnreachable",
            False,
            "storage.caConfigMapName",
        ),
        (aws.ConnectTimeoutError(endpoint_url="x"), "StorageUnreachable", True, "does not answer in time"),
        (aws.ReadTimeoutError(endpoint_url="x"), "StorageUnreachable", True, "does not answer in time"),
        (aws.ProxyConnectionError(proxy_url="x"), "StorageUnreachable", True, "HTTPS_PROXY"),
        (aws.ConnectionClosedError(endpoint_url="x"), "StorageUnreachable", True, "broke off"),
        (OSError(errno.ENOSPC, "full"), "StorageRefused", False, "compute.scratch"),
        (OSError(errno.EACCES, "no", "/x/y"), "StorageRefused", False, "/x/y"),
    ],
)
def test_transport_and_files(exception: Exception, reason: str, retryable: bool, words: str) -> None:
    error = translate(exception, PLACE)
    assert error is not None
    assert (error.reason, error.retryable) == (reason, retryable)
    assert words in error.message


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left for s3://out/x (/out/x): free space there, or name another folder by --output"),
        (errno.EDQUOT, "no space left for s3://out/x (/out/x)"),
        (errno.EROFS, "/out/x/run.json cannot be read and written (Read-only file system)"),
        (errno.EACCES, "/out/x/run.json cannot be read and written (Permission denied): check the folder's owner"),
    ],
)
def test_a_folder_that_takes_no_output(number: int, words: str) -> None:
    place = Place("s3://out/x (/out/x)", "output", folder=Path("/out/x"))
    error = translate(OSError(number, os.strerror(number), "/out/x/run.json"), place)
    assert error is not None
    assert error.reason == "StorageRefused"
    assert words in error.message


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub.test/x"))


@pytest.mark.parametrize(
    ("exception", "reason", "retryable", "words"),
    [
        (hub.OfflineModeIsEnabled("x"), "StorageUnreachable", False, "copy it to S3"),
        (hub.GatedRepoError("x", response=response(403)), "StorageRefused", False, "accept its terms"),
        (hub.RepositoryNotFoundError("x", response=response(404)), "ModelNotFound", False, "is private"),
        (hub.RevisionNotFoundError("x", response=response(404)), "ModelNotFound", False, "no such revision"),
        (hub.RemoteEntryNotFoundError("x", response=response(404)), "ModelNotFound", False, "no such file"),
        (hub.HFValidationError("x"), "InvalidContract", False, "hf://organisation/name"),
        (hub.HfHubHTTPError("x", response=response(401)), "StorageRefused", False, "HF_TOKEN"),
        (hub.HfHubHTTPError("x", response=response(503)), "StorageUnreachable", True, "try again"),
        (httpx2.ConnectError("no route"), "StorageUnreachable", True, "HTTPS_PROXY"),
        (hub.LocalEntryNotFoundError("x"), "StorageUnreachable", True, "does not answer"),
    ],
)
def test_the_hub(exception: Exception, reason: str, retryable: bool, words: str) -> None:
    error = translate(exception, HUB)
    assert error is not None
    assert (error.reason, error.retryable) == (reason, retryable)
    assert words in error.message


def test_a_defect_of_ours_stays_what_it_is() -> None:
    with pytest.raises(ZeroDivisionError), translated(PLACE):
        _ = 1 / 0


def test_an_explained_error_passes_unchanged() -> None:
    mine = StorageError("NoGpu", "x")
    with pytest.raises(StorageError) as caught, translated(PLACE):
        raise mine
    assert caught.value is mine
