"""A small API server over real HTTP: enough of lists, watches and writes for the operator's foundation."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from lorikeet_operator.kube.client import Client
from lorikeet_operator.kube.kinds import EVENT, Kind, Object, key_of
from lorikeet_operator.kube.throttle import TokenBucket
from tests.unit.kube.objects import CONFIG_MAP

THING = Kind("x.dev", "v1", "things", "Thing")
KINDS = (CONFIG_MAP, EVENT, THING)
CREATED = "2026-11-23T10:00:00Z"
Leaf: TypeAlias = tuple[str, ...]
"""Path of a field that is no object; a list is one field."""


@dataclass
class Seen:
    """A request that has come in."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: Any

    @property
    def writes(self) -> bool:
        return self.method != "GET"


@dataclass
class Api:
    """The server's state. `answers` are given out first, in order, whatever is asked."""

    kinds: tuple[Kind, ...] = KINDS
    objects: dict[str, Object] = field(default_factory=dict)
    version: int = 100
    seen: list[Seen] = field(default_factory=list)
    answers: list[web.Response] = field(default_factory=list)
    streams: dict[Kind, list[asyncio.Queue[Any]]] = field(default_factory=dict)
    expired_tokens: int = 0
    page: int = 0
    owned: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """By object and field manager: the top-level fields of the status that it has applied."""
    applied: dict[tuple[str, str], set[Leaf]] = field(default_factory=dict)
    """By object and field manager: all other fields that it has applied."""
    defaults: Callable[[Kind, Object], Object] = lambda kind, obj: obj
    """What the server makes of an object that is applied: it fills in, rewrites and leaves out."""

    @property
    def writes(self) -> list[Seen]:
        return [each for each in self.seen if each.writes]

    def add(self, kind: Kind, obj: Object) -> Object:
        """Store an object as the next version and tell the watches."""
        key = key_of(obj)
        path = kind.path(key.namespace, key.name)
        before = self.objects.get(path)
        self.version += 1
        uid = before["metadata"]["uid"] if before else obj["metadata"].get("uid") or f"uid-{self.version}"
        metadata = {"creationTimestamp": CREATED, **obj["metadata"], "resourceVersion": str(self.version), "uid": uid}
        self.objects[path] = {**obj, "apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
        self.send(kind, {"type": "MODIFIED" if before else "ADDED", "object": self.objects[path]})
        return self.objects[path]

    def remove(self, kind: Kind, obj: Object, *, silently: bool = False) -> None:
        """Delete an object; silently: as when no watch is connected."""
        key = key_of(obj)
        gone = self.objects.pop(kind.path(key.namespace, key.name))
        self.version += 1
        if not silently:
            metadata = {**gone["metadata"], "resourceVersion": str(self.version)}
            self.send(kind, {"type": "DELETED", "object": {**gone, "metadata": metadata}})

    def send(self, kind: Kind, event: Any) -> None:
        """Write a line into the watches of a kind; None ends them."""
        for stream in self.streams.get(kind, []):
            stream.put_nowait(event)

    def watched(self, kind: Kind) -> bool:
        return bool(self.streams.get(kind))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body: Any = json.loads(text) if text else None
        self.seen.append(Seen(request.method, request.path, dict(request.query), request.headers, body))
        if "watch" in request.query:
            return await self._watch(request)
        if self.answers:
            return self.answers.pop(0)
        answer = self._discovery(request.path)
        if answer is not None:
            return web.json_response(answer)
        kind = next((each for each in self.kinds if f"/{each.plural}" in request.path), None)
        if kind is None:
            return web.Response(status=404, text="404 page not found")
        match request.method:
            case "POST":
                return self._create(kind, body)
            case "PATCH":
                return self._patch(kind, request, body)
        if request.path.endswith(kind.plural):
            return self._list(kind, request)
        return web.json_response(self.objects[request.path]) if request.path in self.objects else _failure(404)

    def _create(self, kind: Kind, body: Object) -> web.Response:
        key = key_of(body)
        if kind.path(key.namespace, key.name) in self.objects:
            return _failure(409, "AlreadyExists")
        return web.json_response(self.add(kind, body), status=201)

    def _patch(self, kind: Kind, request: web.Request, body: Object) -> web.Response:
        path, _, _ = request.path.partition("/status")
        merge = "merge-patch" in request.headers.get("Content-Type", "")
        whole = path == request.path
        metadata = body.get("metadata", {})
        held = self.objects.get(path)
        if held is None:
            if merge or not whole:
                return _failure(404)
            if metadata.get("uid"):
                return _failure(409, "Conflict", message="uid mismatch: no existing object was found")
            return web.json_response(self._apply(kind, path, request.query["fieldManager"], None, body), status=201)
        if metadata.get("resourceVersion", held["metadata"]["resourceVersion"]) != held["metadata"]["resourceVersion"]:
            return _failure(409, "Conflict")
        if metadata.get("uid", held["metadata"]["uid"]) != held["metadata"]["uid"]:
            return _failure(422, "Invalid", causes=[{"field": "metadata.uid", "message": "field is immutable"}])
        if merge:
            return web.json_response(self._merge(kind, held, body if whole else _of_status(body)))
        if whole:
            return web.json_response(self._apply(kind, path, request.query["fieldManager"], held, body))
        status = self._applied(path, request.query["fieldManager"], held, body.get("status", {}))
        return web.json_response(self.add(kind, {**held, "status": status}))

    def _merge(self, kind: Kind, held: Object, patch: Object) -> Object:
        """Take in a merge patch; what was only held by finalizers goes with the last of them."""
        merged: Object = _merged(held, patch)
        if merged["metadata"].get("deletionTimestamp") and merged["metadata"].get("finalizers") == []:
            self.remove(kind, held)
            return merged
        return self.add(kind, merged)

    def _apply(self, kind: Kind, path: str, manager: str, held: Object | None, wanted: Object) -> Object:
        """Take in a server-side apply: what this manager named before goes, unless another one has applied it."""
        mine = self.applied.pop((path, manager), set())
        others = {leaf for (of, _), leaves in self.applied.items() if of == path for leaf in leaves}
        named = self.applied[path, manager] = _named(wanted)
        merged = _merged(held or {}, wanted)
        for leaf in mine - named - others:
            merged = _without(merged, leaf)
        merged = self.defaults(kind, merged)
        if held is not None and merged == held:
            return held  # which is no new version
        if held is None or merged.get("spec") != held.get("spec"):
            generation = merged["metadata"].get("generation", 0) + 1
            merged = {**merged, "metadata": {**merged["metadata"], "generation": generation}}
        return self.add(kind, merged)

    def _applied(self, path: str, manager: str, held: Object, status: Object) -> Object:
        """Return the status after a server-side apply: what others have applied stays."""
        mine = self.owned.setdefault((path, manager), set())
        kept = {name: value for name, value in (held.get("status") or {}).items() if name not in mine}
        mine.clear()
        mine.update(status)
        return {**kept, **status}

    def _list(self, kind: Kind, request: web.Request) -> web.Response:
        scope = request.path.removesuffix(f"/{kind.plural}")  # of a namespace, or of all
        items = [
            obj for path, obj in sorted(self.objects.items()) if path.startswith(scope) and f"/{kind.plural}/" in path
        ]
        field, _, value = request.query.get("fieldSelector", "").partition(",")[0].partition("=")
        if field == "involvedObject.uid":
            items = [obj for obj in items if obj["involvedObject"]["uid"] == value]
        start = int(request.query.get("continue", "0"))
        if start and self.expired_tokens:
            self.expired_tokens -= 1
            return _failure(410, "Expired")
        end = start + self.page if self.page else len(items)
        metadata = {"resourceVersion": str(self.version), "continue": str(end) if end < len(items) else ""}
        # As the real one does: items of a list carry no kind of their own.
        bare = [{name: value for name, value in obj.items() if name not in ("kind", "apiVersion")} for obj in items]
        return web.json_response(
            {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": bare[start:end]}
        )

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        kind = next(each for each in self.kinds if request.path.endswith(f"/{each.plural}"))
        response = web.StreamResponse()
        await response.prepare(request)
        stream: asyncio.Queue[Any] = asyncio.Queue()
        self.streams.setdefault(kind, []).append(stream)
        try:
            while (event := await stream.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self.streams[kind].remove(stream)
        return response

    def _discovery(self, path: str) -> Any:
        groups = {kind.group: kind.version for kind in self.kinds if kind.group}
        if path == "/api":
            return {"versions": ["v1"]}
        if path == "/apis":
            named = [(name, {"version": version}) for name, version in groups.items()]
            return {"groups": [{"name": name, "versions": [of], "preferredVersion": of} for name, of in named]}
        extra = [("customresourcedefinitions", "CustomResourceDefinition", "apiextensions.k8s.io")]
        extra += [("namespaces", "Namespace", "")]
        rows = [(kind.plural, kind.kind, kind.group) for kind in self.kinds] + extra
        for group in {group for _, _, group in rows}:
            if path == (f"/apis/{group}/{groups.get(group, 'v1')}" if group else "/api/v1"):
                verbs = ["get", "list", "watch", "patch"]
                return {
                    "resources": [
                        {"name": plural, "kind": kind, "singularName": kind.lower(), "namespaced": True, "verbs": verbs}
                        for plural, kind, of in rows
                        if of == group
                    ]
                }
        return None


def _merged(held: Any, patch: Any) -> Any:
    """Return what a JSON merge patch (RFC 7386) makes of an object."""
    if not isinstance(patch, dict) or not isinstance(held, dict):
        return patch
    merged = {**held, **{name: _merged(held.get(name), value) for name, value in patch.items()}}
    return {name: value for name, value in merged.items() if value is not None}


def _of_status(patch: Object) -> Object:
    """Return what a patch of `/status` changes: not the spec."""
    return {name: value for name, value in patch.items() if name in ("metadata", "status")}


def _named(wanted: Object) -> set[Leaf]:
    """Return the fields that an apply names, but for those by which it says which object it means."""
    return {leaf for leaf in _leaves(wanted) if leaf[0] not in ("apiVersion", "kind") and leaf[:2] not in _IDENTITY}


_IDENTITY = {("metadata", name) for name in ("name", "namespace", "uid", "resourceVersion")}


def _leaves(value: Object, path: Leaf = ()) -> Iterator[Leaf]:
    for name, each in value.items():
        if isinstance(each, dict) and each:
            yield from _leaves(each, (*path, name))
        else:
            yield (*path, name)


def _without(value: Object, leaf: Leaf) -> Object:
    """Return an object without a field, and without the object that is empty then."""
    name, *below = leaf
    rest = {key: each for key, each in value.items() if key != name}
    kept = _without(value[name], tuple(below)) if below and isinstance(value.get(name), dict) else {}
    return {**rest, name: kept} if kept else rest


def _failure(
    status: int, reason: str = "", causes: list[dict[str, str]] | None = None, message: str = ""
) -> web.Response:
    said = message or f"the server says {status}"
    body = {"kind": "Status", "reason": reason, "message": said, "details": {"causes": causes}}
    return web.json_response(body, status=status)


async def serve(api: Api) -> TestServer:
    """Begin to serve; the caller closes."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", api.handle)
    server = TestServer(app)
    await server.start_server()
    return server


def configuration_for(server: TestServer) -> Configuration:
    """Return how to reach a server."""
    configuration = Configuration()
    configuration.host = str(server.make_url("/")).rstrip("/")
    configuration.api_key["BearerToken"] = "bearer secret"
    return configuration


def client_for(server: TestServer, timeout: float = 10.0) -> Client:
    """Return a client of a server."""
    return Client(configuration_for(server), "tester", TokenBucket(1000, 1000), timeout)
