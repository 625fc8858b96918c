"""Requests to the API server: raw JSON in, raw JSON out, typed errors, a rate limit, a timeout on each."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from lorikeet_operator.kube.errors import ApiError, NotLeading, Unavailable, error_of
from lorikeet_operator.kube.kinds import Key, Kind, Object, key_of
from lorikeet_operator.kube.throttle import TokenBucket
from lorikeet_operator.metrics import API_REQUESTS

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class Listing:
    """A complete list: what was there at one resource version."""

    items: list[Object]
    version: int


class Client:
    """The API server as the operator uses it. Every method raises a subclass of `ApiError`.

    All writes carry `field_manager` and `fieldValidation=Strict`: a misspelt field is an error, not pruned.
    """

    def __init__(
        self,
        configuration: Configuration,
        field_manager: str,
        bucket: TokenBucket,
        timeout: float = 30.0,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take the `timeout` of a request in seconds, and what is asked before each write is sent."""
        self._api = ApiClient(configuration)
        self._field_manager = field_manager
        self._bucket = bucket
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._may_write = may_write

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: Kind, key: Key) -> Object:
        """Return one object."""
        return await self._request("get", kind, "GET", kind.path(key.namespace, key.name))

    async def list(
        self,
        kind: Kind,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        page: int = 100,
        kept: Callable[[Object], Object] = lambda obj: obj,
    ) -> Listing:
        """Return all objects of a kind, read page by page; without a namespace, of the whole cluster.

        `kept` returns what to keep of each: a whole list may be too much for the memory.
        """
        for _ in range(3):
            try:
                return await self._pages(kind, namespace, label_selector, field_selector, page, kept)
            except ApiError as error:
                # 410: the pages took longer than the server keeps their version. Start again.
                if error.status != 410:
                    raise
        raise Unavailable(0, "Expired", f"the list of {kind} expired while it was read, three times")

    async def create(self, kind: Kind, obj: Object) -> Object:
        """Make an object; `AlreadyExists` if the name is taken."""
        path = kind.path(obj["metadata"].get("namespace") or "")
        return await self._request("create", kind, "POST", path, query=self._write(), body=_named(kind, obj))

    async def apply(self, kind: Kind, obj: Object) -> Object:
        """Server-side apply of an object: made if it is not there; fields that we owned and no longer name are removed.

        With `metadata.uid` in `obj`, `Conflict` if the object is another one.
        """
        key = key_of(obj)
        query = {**self._write(), "force": "true"}
        path = kind.path(key.namespace, key.name)
        return await self._request("apply", kind, "PATCH", path, query, _named(kind, obj), _APPLY)

    async def apply_status(self, kind: Kind, obj: Object) -> Object:
        """Server-side apply of `obj["status"]`.

        Fields that we owned and that are no longer there are removed. With `metadata.uid` in `obj`, `Conflict` if
        the object is another one; with `metadata.resourceVersion` in it, if it has changed. `NotFound` if it is gone.
        """
        key = key_of(obj)
        query = {**self._write(), "force": "true"}
        path = kind.path(key.namespace, key.name, "status")
        return await self._request("apply_status", kind, "PATCH", path, query, _named(kind, obj), _APPLY)

    async def patch(self, kind: Kind, key: Key, body: Mapping[str, Any], uid: str, subresource: str = "") -> Object:
        """Merge-patch a single field of the object with this uid; `Conflict` if it is another one by now."""
        body = {**body, "metadata": {**body.get("metadata", {}), "uid": uid}}
        path = kind.path(key.namespace, key.name, subresource)
        return await self._request("patch", kind, "PATCH", path, self._write(), body, _MERGE)

    def _write(self) -> dict[str, str]:
        return {"fieldManager": self._field_manager, "fieldValidation": "Strict"}

    async def _pages(
        self,
        kind: Kind,
        namespace: str,
        label_selector: str,
        field_selector: str,
        page: int,
        kept: Callable[[Object], Object],
    ) -> Listing:
        query = {"limit": str(page)}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        items: list[Object] = []
        while True:
            answer = await self._request("list", kind, "GET", kind.path(namespace), query)
            items += [kept(_named(kind, item)) for item in answer.get("items") or []]
            token = answer["metadata"].get("continue")
            if not token:
                return Listing(items, int(answer["metadata"]["resourceVersion"]))
            query["continue"] = token

    async def _request(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        await self._bucket.take()
        if method != "GET" and not self._may_write():
            raise NotLeading(0, "NotLeading", f"{method} {path} was not sent: this replica does not lead")
        code = "0"
        try:
            status, answer, retry_after = await self._send(method, path, query or {}, body, content_type)
            code = str(status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = f"{method} {path}: {type(error).__name__} {error}".strip()
            raise Unavailable(0, "NoAnswer", message) from error
        finally:
            API_REQUESTS.labels(verb, kind.resource, code).inc()
        if status < 300:
            return cast(Object, answer)
        raise error_of(status, answer, retry_after)

    async def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, content_type: str
    ) -> tuple[int, Any, str | None]:
        """Send one request with fresh credentials; return status, parsed body and Retry-After."""
        url = f"{self._api.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": self._field_manager}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        response = await self._api.rest_client.request(  # type: ignore[no-untyped-call]
            method, url, headers=headers, body=body, _request_timeout=self._timeout
        )
        data = await response.read()
        try:
            answer = json.loads(data)
        except ValueError:
            # A proxy or a load balancer in between answers in its own words.
            answer = data.decode(errors="replace")[:500]
        return response.status, answer, response.headers.get("Retry-After")


def _named(kind: Kind, obj: Object) -> Object:
    """Return the object with apiVersion and kind: an apply needs them, items of a list lack them."""
    return {**obj, "apiVersion": kind.api_version, "kind": kind.kind}
