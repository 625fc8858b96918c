"""What can go wrong when talking to the API server."""

from collections.abc import Sequence
from typing import Any


class ApiError(Exception):
    """The API server refused a request, or could not be reached (status 0)."""

    retryable = False
    """The same request may succeed later without anybody changing anything."""

    def __init__(
        self, status: int, reason: str, message: str, causes: Sequence[str] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = tuple(causes)
        """For a 422 and a field conflict: `field: message`, one for each field."""
        self.retry_after = retry_after
        """Seconds after which the server wants to be asked again."""


class NotFound(ApiError):
    """404: no such object, kind or namespace."""


class AlreadyExists(ApiError):
    """409: an object of that name is there."""


class Conflict(ApiError):
    """409: the object is not the one, or not the version, that the request was made for."""

    retryable = True


class Invalid(ApiError):
    """422 or 400: the API server will never take this object; `causes` names the fields."""


class Forbidden(ApiError):
    """403: RBAC, Pod Security Admission, a quota, an admission policy, or a terminating namespace."""


class TooManyRequests(ApiError):
    """429: the API server sheds load."""

    retryable = True


class NotLeading(ApiError):
    """The request was not sent: another replica leads, or may begin to."""

    retryable = True


class Unavailable(ApiError):
    """No answer, or one of 5xx."""

    retryable = True


class HeldByOther(Exception):
    """The name that we need is taken by an object that our owner does not control."""

    def __init__(self, resource: str, key: str) -> None:
        super().__init__(f"{resource} {key} exists and belongs to something else")
        self.resource = resource
        self.key = key


def error_of(status: int, body: Any, retry_after: str | None = None) -> ApiError:
    """Return the error for a response that is not 2xx; `body` is the parsed `Status`, or text."""
    answer = body if isinstance(body, dict) else {}
    reason = str(answer.get("reason") or "")
    message = str(answer.get("message") or (body.strip() if isinstance(body, str) else "") or "no message")
    details = answer.get("details") or {}
    causes = [f"{cause.get('field', '')}: {cause.get('message', '')}" for cause in details.get("causes") or []]
    seconds = retry_after or details.get("retryAfterSeconds")
    wait = float(str(seconds)) if str(seconds).isdigit() else None
    return _class_of(status, reason, causes)(status, reason, message, causes, wait)


def _class_of(status: int, reason: str, causes: Sequence[str]) -> type[ApiError]:
    # A uid in a patch is no precondition to the server: it sees an attempt to change the object's uid.
    if status == 422 and any(cause.startswith("metadata.uid:") for cause in causes):
        return Conflict
    match status:
        case 404:
            return NotFound
        case 409:
            return AlreadyExists if reason == "AlreadyExists" else Conflict
        case 400 | 422:
            return Invalid
        case 403:
            return Forbidden
        case 429:
            return TooManyRequests
        case _ if status >= 500:
            return Unavailable
    return ApiError
