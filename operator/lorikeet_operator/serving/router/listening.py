"""Whom Envoy listens to: clients, and those who look how it stands."""

from importlib.resources import files
from typing import Any, Final

from lorikeet_operator.serving.router.leading import PREFIX
from lorikeet_operator.serving.router.observed import access_log, metrics
from lorikeet_operator.serving.router.replies import LOCAL_REPLIES
from lorikeet_operator.serving.router.shapes import LUA, TYPE, address, http_filter, watched
from lorikeet_operator.serving.router.wanted import ADMIN, LED, Limits

_MANAGER: Final = f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_UUID: Final = f"{TYPE}.extensions.request_id.uuid.v3.UuidRequestIdConfig"
_ROUTER: Final = http_filter("envoy.filters.http.router", "router.v3.Router")
_UNFORGED: Final = {
    "name": "unforged",
    "typed_config": {
        "@type": f"{TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        # The last one would choose vLLM's worker.
        "mutations": [{"remove": LED}, {"remove": PREFIX}, {"remove": "x-data-parallel-rank"}],
    },
}


def listeners(
    port: int,
    status_port: int,
    limits: Limits,
    folder: str,
    host: str = "0.0.0.0",  # noqa: S104 - of a pod
) -> dict[str, Any]:
    """Return the listeners: of requests, with all that one passes, and of `/ready` and `/metrics`."""
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "router",
        # HTTP/2 would let a body pass that is larger than the listener's limit.
        "codec_type": "HTTP1",
        "use_remote_address": True,
        # A client finds its request in the access log and at the engine, by an id of its own if it likes.
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        # Else Envoy writes into a client's UUID whether the request is traced.
        "request_id_extension": {"typed_config": {"@type": _UUID, "pack_trace_reason": False}},
        "access_log": [*metrics(), access_log()],
        "rds": {"route_config_name": "routes", "config_source": watched(folder, "routes.json")},
        # Before a route is looked for, so that no client has a say in it.
        "early_header_mutation_extensions": [_UNFORGED],
        "http_filters": [http_filter(LUA, "lua.v3.Lua", default_source_code={"inline_string": script()}), _ROUTER],
        "local_reply_config": LOCAL_REPLIES,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "stream_idle_timeout": f"{limits.idle_timeout_seconds}s",
        "request_headers_timeout": "10s",
        "request_timeout": "60s",  # until the request is there; the answer has no such end
    }
    requests = {
        **_listener("requests", address(host, port), manager),
        # The script holds the whole body: what is larger is answered 413.
        "per_connection_buffer_limit_bytes": limits.max_request_bytes,
    }
    return {"resources": [requests, _status(address(host, status_port))]}


def script() -> str:
    """Return the script that leads requests."""
    return files(__package__).joinpath("router.lua").read_text()


def _status(at: dict[str, Any]) -> dict[str, Any]:
    """Return the listener of probes and Prometheus: two paths of the admin interface, which has dangerous ones, too."""
    paths = (("/ready", "/ready"), ("/metrics", "/stats/prometheus"))
    routes = [{"match": {"path": path}, "route": {"cluster": ADMIN, "prefix_rewrite": there}} for path, there in paths]
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "status",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [_ROUTER],
    }
    # Clients who are too many, or ask for too much, do not make it look dead.
    return {**_listener("status", at, manager), "bypass_overload_manager": True}


def _listener(name: str, at: dict[str, Any], manager: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": f"{TYPE}.config.listener.v3.Listener",
        "name": name,
        "address": at,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
