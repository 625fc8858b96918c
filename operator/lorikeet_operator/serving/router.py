"""Builds what Envoy reads: whom it listens to, who answers, and which share of the requests (pure).

Requests are led by `router.lua`. Envoy reads three files, and reads each again when it changes: `listeners.json` never
does (a change would drain connections), `clusters.json` has one cluster for each adapter revision that is served, and
`routes.json` the models and weights. The formats are those of Envoy's v3 API (envoy.config.*.v3).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

FOLDER: Final = "/etc/lorikeet/router"
"""Where the files are mounted."""
LED: Final = "x-lorikeet-cluster"
"""Header that the script sets, and by which alone a request gets anywhere; `router.lua` knows it, too."""
LUA: Final = "lorikeet"
"""Name of the script's filter; its metadata lie under it."""
_TYPE: Final = "type.googleapis.com/envoy"


@dataclass(frozen=True)
class Variant:
    """Who answers a share of a model's requests."""

    name: str
    served: str
    """The name under which the engine serves it: that of an adapter's revision, or the base model's."""
    weight: int


@dataclass(frozen=True)
class Route:
    """One model as clients know it."""

    model: str
    variants: Sequence[Variant]
    sticky: str | None = None
    """Header whose value keeps its variant."""


@dataclass(frozen=True)
class Engines:
    """Where the engines are, and what says that one of them serves a name."""

    host: str
    """A headless Service, which names those too that are not ready."""
    port: int
    agent_port: int
    """`/served/<name>` there answers 200 where the engine can answer for the name."""


@dataclass(frozen=True)
class Limits:
    """What the router bears."""

    max_request_bytes: int = 8 << 20
    idle_timeout_seconds: int = 300
    """Without a byte in either direction; an answer may take as long as it likes."""


def bootstrap(node: str, admin_port: int, folder: str = FOLDER) -> dict[str, Any]:
    """Return what Envoy is started with.

    Args:
        node: name of this router.
        admin_port: port of the admin interface, on loopback.
        folder: where the other files are.
    """

    def read(name: str) -> dict[str, Any]:
        return {"resource_api_version": "V3", "path_config_source": _file(folder, name)}

    return {
        "node": {"id": node, "cluster": "lorikeet-router"},
        "admin": {"address": _address("127.0.0.1", admin_port)},
        "dynamic_resources": {"lds_config": read("listeners.json"), "cds_config": read("clusters.json")},
    }


def listeners(port: int, limits: Limits, folder: str = FOLDER, host: str = "0.0.0.0") -> dict[str, Any]:  # noqa: S104
    """Return the listener, with all that a request passes."""
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "router",
        "rds": {
            "route_config_name": "routes",
            "config_source": {"resource_api_version": "V3", "path_config_source": _file(folder, "routes.json")},
        },
        # Before a route is looked for, so that no client has a say in it.
        "early_header_mutation_extensions": [_UNFORGED],
        "http_filters": [
            _filter(LUA, "http.lua.v3.Lua", default_source_code={"inline_string": script()}),
            _filter("envoy.filters.http.router", "http.router.v3.Router"),
        ],
        "local_reply_config": _LOCAL_REPLIES,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "stream_idle_timeout": f"{limits.idle_timeout_seconds}s",
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
    }
    listener = {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": "requests",
        "address": _address(host, port),
        # The script holds the whole body: what is larger is answered 413.
        "per_connection_buffer_limit_bytes": limits.max_request_bytes,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"resources": [listener]}


def clusters(routes: Sequence[Route], engines: Engines) -> dict[str, Any]:
    """Return a cluster for each name that is served: all engines, of which those get requests that have it loaded."""
    served = sorted({variant.served for route in routes for variant in route.variants})
    return {"resources": [_cluster(name, engines) for name in served]}


def routes(models: Sequence[Route], limits: Limits) -> dict[str, Any]:
    """Return which models there are, and who answers for them with which weight."""
    known: dict[str, Any] = {f"model {route.model}": _model(route) for route in models}
    known["list"] = json.dumps({"object": "list", "data": [_listed(route.model) for route in models]})
    led = {
        "match": {"prefix": "/", "headers": [{"name": LED, "present_match": True}]},
        "route": {
            "cluster_header": LED,
            "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
            "timeout": "0s",  # an answer is streamed for as long as it takes
            "idle_timeout": f"{limits.idle_timeout_seconds}s",
            "retry_policy": _RETRIES,
        },
        "request_headers_to_remove": [LED],
    }
    # Where a request ends that the script did not lead, such as after an error in it.
    lost = {
        "match": {"prefix": "/"},
        "metadata": {"filter_metadata": {LUA: known}},
        "direct_response": {"status": 500},
    }
    answers = [_header(name, f"%DYNAMIC_METADATA(lorikeet:{key})%") for name, key in _ANSWERS]
    host = {"name": "all", "domains": ["*"], "routes": [led, lost], "response_headers_to_add": answers}
    configuration = {"@type": f"{_TYPE}.config.route.v3.RouteConfiguration", "name": "routes", "virtual_hosts": [host]}
    return {"resources": [configuration]}


def script() -> str:
    """Return the script that leads requests."""
    return files(__package__).joinpath("router.lua").read_text()


_ANSWERS: Final = (("x-lorikeet-variant", "variant"), ("x-lorikeet-revision", "revision"))
_UNFORGED: Final = {
    "name": "unforged",
    "typed_config": {
        "@type": f"{_TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [{"remove": LED}],
    },
}
_RETRIES: Final = {
    # Only where no engine has seen a byte.
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 2,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": f"{_TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
        }
    ],
    "host_selection_retry_max_attempts": "3",
}


def _error(message: str, kind: str, code: str) -> dict[str, Any]:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {"json_format": {"error": error}}


def _reply(status: int, message: str, kind: str, code: str, **more: Any) -> dict[str, Any]:
    is_status = {"comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": f"lorikeet.{status}"}}}
    return {"filter": {"status_code_filter": is_status}, "body_format_override": _error(message, kind, code), **more}


_LOCAL_REPLIES: Final = {
    "mappers": [
        _reply(413, "the body is larger than this router takes", "invalid_request_error", "body_too_large"),
        _reply(
            503,
            "no replica serves this variant now: try again",
            "service_unavailable_error",
            "unavailable",
            headers_to_add=[{"header": {"key": "retry-after", "value": "5"}}],
        ),
        _reply(500, "the router could not lead the request anywhere", "server_error", "not_led"),
    ]
}
"""What Envoy answers by itself, in OpenAI's shape. What the script answers has it already, under other statuses."""


def _model(route: Route) -> dict[str, Any]:
    variants = [{"name": each.name, "served": each.served, "weight": each.weight} for each in route.variants]
    return {"variants": variants} | ({"sticky": route.sticky.lower()} if route.sticky else {})


def _listed(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "lorikeet"}


def _cluster(served: str, engines: Engines) -> dict[str, Any]:
    endpoint = {
        "address": _address(engines.host, engines.port),
        "health_check_config": {"port_value": engines.agent_port},
    }
    options = {"common_lb_config": {"healthy_panic_threshold": {"value": 0}}}
    return {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": served,
        "type": "STRICT_DNS",
        "dns_refresh_rate": "1s",
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        **options,
        # One that is gone gets no requests, whatever its last answer was.
        "ignore_health_on_host_removal": True,
        "load_assignment": {
            "cluster_name": served,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": f"/served/{served}"},
            }
        ],
        "outlier_detection": {"consecutive_gateway_failure": 3, "base_ejection_time": "5s", "interval": "1s"},
        # The engine queues; Envoy's default of 1,024 would answer 503 before it.
        "circuit_breakers": {
            "thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 1000000)]
        },
    }


def _filter(name: str, kind: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_TYPE}.extensions.filters.{kind}", **configuration}}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _file(folder: str, name: str) -> dict[str, Any]:
    return {"path": f"{folder}/{name}", "watched_directory": {"path": folder}}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
