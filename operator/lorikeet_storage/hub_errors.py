"""The hub's exceptions in the user's words. Apart from `translate`, so that S3 users do not load huggingface_hub."""

import huggingface_hub.errors as hub

from lorikeet_storage.errors import Place, Refused, StorageError, Unreachable

# The client that the hub's library uses has changed its package before; its base class is reached through this one.
_Transport = hub.HfHubHTTPError.__bases__[0]
_TOKEN = "put a token into HF_TOKEN of the Secret that spec.model.secretRef names"  # noqa: S105 - advice, no secret
_MIRROR = "copy it to S3 and name that in {field}, or let the pod reach the hub (HTTPS_PROXY, HF_ENDPOINT)"


def hub_error(error: Exception, place: Place) -> StorageError | None:
    """Return an exception of the hub's library or of its HTTP client as a StorageError, or None if unknown."""
    uri, field = place.uri, place.field
    mirror = _MIRROR.format(field=field)
    if isinstance(error, hub.OfflineModeIsEnabled):
        return Unreachable("StorageUnreachable", f"{uri} cannot be read: the pod is offline (HF_HUB_OFFLINE): {mirror}")
    if isinstance(error, hub.GatedRepoError):
        return Refused("StorageRefused", f"{uri} is gated: accept its terms on the hub and {_TOKEN}")
    if isinstance(error, hub.RepositoryNotFoundError):
        return place.missing(f"{uri} does not exist on the hub or is private: correct {field}, or {_TOKEN}")
    if isinstance(error, hub.RevisionNotFoundError | hub.RevisionResolutionError):
        return place.missing(f"{uri} has no such revision: name a commit, tag or branch that it has in {field}")
    if isinstance(error, hub.DisabledRepoError):
        return Refused("StorageRefused", f"{uri} is disabled on the hub: choose another in {field}")
    if isinstance(error, hub.EntryNotFoundError) and not isinstance(error, hub.LocalEntryNotFoundError):
        return place.missing(f"{uri} has no such file at this revision: correct {field}")
    if isinstance(error, hub.HFValidationError):
        return Refused("InvalidContract", f"{uri} is no name of a repository ({error}): write hf://organisation/name")
    if isinstance(error, hub.HfHubHTTPError):
        return _http_error(error, place)
    if isinstance(error, _Transport | hub.LocalEntryNotFoundError | hub.FileMetadataError | hub.XetDownloadError):
        return Unreachable(
            "StorageUnreachable", f"the hub does not answer for {uri} ({error}): {mirror}", retryable=True
        )
    return None


def _http_error(error: hub.HfHubHTTPError, place: Place) -> StorageError:
    status = error.response.status_code
    if status in (401, 403):
        return Refused("StorageRefused", f"the hub refuses {place.uri} (HTTP {status}): {_TOKEN}")
    if status == 429 or status >= 500:
        return Unreachable(
            "StorageUnreachable",
            f"the hub failed at {place.uri} (HTTP {status}): try again later",
            retryable=True,
        )
    return Refused("StorageRefused", f"the hub refused {place.uri} (HTTP {status}: {error}): correct {place.field}")
