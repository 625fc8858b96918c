"""The libraries' exceptions in the user's words: the one place that knows those of botocore and of the file system.

The hub's are in `hub_errors`, so that S3 users do not load huggingface_hub.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import botocore.exceptions as aws

from lorikeet_storage.errors import Place, Refused, Role, StorageError, Unreachable

_CREDENTIALS: Final = (
    "put AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY into the Secret that the profile's storage.secretName names,"
    " or give the ServiceAccount of storage.serviceAccountName a cloud identity (outside a cluster: the environment)"
)
_CA: Final = (
    "put the CA's certificate into ca.crt of the ConfigMap that the profile's storage.caConfigMapName names"
    " (outside a cluster: AWS_CA_BUNDLE)"
)
_ENDPOINT: Final = "check the profile's storage.endpoint, the store itself, and network policies and proxies on the way"
_SCRATCH: Final = (
    "raise compute.scratch: model, data and outputs must fit into it together (outside a cluster: free space, or name"
    " a folder with more of it by --work)"
)
_OUTPUT: Final = "or name another folder by --output"

_NOT_FOUND_CODES: Final = {"NoSuchKey", "404", "NotFound", "NoSuchVersion"}
_BAD_KEY_CODES: Final = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "XAdminUserNotFound"}
_FORBIDDEN_CODES: Final = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_EXPIRED_CODES: Final = {"ExpiredToken", "TokenRefreshRequired", "RequestExpired"}
_REGION_CODES: Final = {
    "PermanentRedirect",
    "301",
    "307",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_FULL_CODES: Final = {"QuotaExceeded", "InsufficientStorage", "507", "XMinioStorageFull", "EntityTooLarge"}
_BUSY_CODES: Final = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "429",
    "Throttling",
}


@contextmanager
def translated(place: Place) -> Iterator[None]:
    """Raise every exception of the libraries inside as a StorageError about `place`."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        known = translate(error, place)
        if known is None:
            raise
        raise known from error


def translate(error: Exception, place: Place) -> StorageError | None:
    """Return `error` of botocore, huggingface_hub or the file system in words, or None for a defect of ours."""
    if isinstance(error, aws.ClientError):
        return _client_error(error, place)
    if isinstance(error, aws.BotoCoreError | aws.HTTPClientError):
        return _transport_error(error, place)
    if type(error).__module__.partition(".")[0] in ("huggingface_hub", "httpx", "httpx2"):
        from lorikeet_storage.hub_errors import hub_error  # huggingface_hub is loaded where it is used

        return hub_error(error, place)
    if isinstance(error, OSError):
        return _file_error(error, place)
    return None


def _client_error(error: aws.ClientError, place: Place) -> StorageError:
    details = error.response.get("Error", {})
    code = str(details.get("Code", ""))
    said = f"{code}: {details.get('Message', '')}".rstrip(": ")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    uri, field = place.uri, place.field
    if code == "NoSuchBucket":
        bucket = uri.removeprefix("s3://").partition("/")[0]
        where = f" at {place.endpoint}" if place.endpoint else ""
        return place.missing(f"bucket {bucket} does not exist{where}: create it or correct {field} ({uri})")
    if code in _NOT_FOUND_CODES:
        return place.missing(f"{uri} does not exist: upload it or correct {field}")
    if code in _BAD_KEY_CODES:
        return Refused(
            "StorageRefused", f"the store does not accept the credentials for {uri} ({said}): {_CREDENTIALS}"
        )
    if code in _EXPIRED_CODES:
        return Refused("StorageRefused", f"the credentials for {uri} have expired ({said}): renew the Secret's values")
    if code == "RequestTimeTooSkewed":
        return Refused(
            "StorageRefused", f"the node's clock is wrong, the store refuses its signature for {uri}: set it"
        )
    if code in _REGION_CODES:
        return Refused("StorageRefused", f"{uri} lies in another region ({said}): correct the profile's storage.region")
    if code in _FULL_CODES:
        return Refused("StorageRefused", f"the store has no room for {uri} ({said}): free space or raise the quota")
    if code in _FORBIDDEN_CODES or status in (401, 403):
        return Refused(
            "StorageRefused",
            f"access to {uri} is denied ({said}): grant the credentials {_RIGHTS[place.role]},"
            f" or correct {field} (AWS says so for an absent key too, where s3:ListBucket is missing)",
        )
    if code in _BUSY_CODES or status >= 500:
        return Unreachable("StorageUnreachable", f"the store failed at {uri} ({said}): try again later", retryable=True)
    return Refused("StorageRefused", f"the store refused {uri} ({said}): {_ENDPOINT}")


_RIGHTS: Final[dict[Role, str]] = {
    "model": "s3:GetObject and s3:ListBucket",
    "start": "s3:GetObject and s3:ListBucket",
    "data": "s3:GetObject and s3:ListBucket",
    "output": "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket",
}


def _transport_error(error: Exception, place: Place) -> StorageError:
    endpoint = place.endpoint or "AWS"
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.NoAuthTokenError):
        return no_credentials(place, str(error))
    if isinstance(
        error,
        aws.CredentialRetrievalError | aws.TokenRetrievalError | aws.ProfileNotFound | aws.MetadataRetrievalError,
    ):
        return Refused("StorageRefused", f"the S3 credentials for {place.uri} cannot be had ({error}): {_CREDENTIALS}")
    if isinstance(error, aws.SSLError):
        return Unreachable("StorageUnreachable", f"the TLS certificate of {endpoint} is not trusted ({error}): {_CA}")
    if isinstance(error, aws.ProxyConnectionError):
        return Unreachable(
            "StorageUnreachable",
            f"the proxy before {endpoint} does not answer ({error}): check HTTPS_PROXY",
            retryable=True,
        )
    if isinstance(error, aws.ParamValidationError | aws.InvalidRegionError | aws.EndpointProviderError):
        return Refused("InvalidContract", f"{place.uri} cannot be asked for ({error}): correct {place.field}")
    cause = _network_cause(error)
    return Unreachable("StorageUnreachable", f"{endpoint} {cause} (for {place.uri}): {_ENDPOINT}", retryable=True)


def _network_cause(error: Exception) -> str:
    text = str(getattr(error, "kwargs", {}).get("error", "")) or str(error)
    # urllib3 says it with these words: botocore keeps no error number.
    if "NameResolution" in text or "Name or service not known" in text or "getaddrinfo" in text:
        return "has no address: its name is not known to DNS"
    if "refused" in text:
        return "refuses connections: nothing listens there"
    if isinstance(error, aws.ConnectTimeoutError | aws.ReadTimeoutError):
        return "does not answer in time"
    return f"broke off ({type(error).__name__}: {text})"


def no_credentials(place: Place, cause: str = "none found") -> Refused:
    """Return the error for S3 without credentials."""
    return Refused("StorageRefused", f"no S3 credentials for {place.uri} ({cause}): {_CREDENTIALS}")


def bad_ca_bundle(path: str, error: OSError) -> Refused:
    """Return the error for an AWS_CA_BUNDLE that cannot be loaded."""
    return Refused("StorageRefused", f"the CA bundle {path} holds no certificate that can be read ({error}): {_CA}")


def bad_endpoint(place: Place) -> Refused:
    """Return the error for an endpoint that is no URL."""
    return Refused(
        "StorageRefused",
        f"storage.endpoint {place.endpoint!r} is not a URL: write it as http://host:port or https://host",
    )


def _file_error(error: OSError, place: Place) -> StorageError | None:
    in_folder = place.role == "output" and place.folder is not None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        if in_folder:
            return Refused("StorageRefused", f"no space left for {place.uri}: free space there, {_OUTPUT}")
        return Refused("StorageRefused", f"no space left for {place.uri} in the scratch volume: {_SCRATCH}")
    if error.errno in (errno.EACCES, errno.EPERM) or (in_folder and error.errno == errno.EROFS):
        at = error.filename or place.uri
        if in_folder:
            return Refused(
                "StorageRefused",
                f"{at} cannot be read and written ({error.strerror}): check the folder's owner and mode, {_OUTPUT}",
            )
        return Refused("StorageRefused", f"no right to read {at}: check the files' owner and mode")
    if error.errno == errno.EIO:
        return Unreachable(
            "StorageUnreachable", f"reading {place.uri} failed ({error}): check the volume", retryable=True
        )
    return None
