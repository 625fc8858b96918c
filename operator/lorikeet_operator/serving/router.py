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
from urllib.parse import quote

FOLDER: Final = "/etc/lorikeet/router"
"""Where the files are mounted."""
LED: Final = "x-lorikeet-cluster"
"""Header that the script sets, and by which alone a request gets anywhere; `router.lua` knows it, too."""
ADMIN: Final = "(admin)"
"""Cluster of Envoy's own admin interface."""
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

    def __post_init__(self) -> None:
        """Refuse a name that would not stay one inside a JSON string. Raises ValueError."""
        if json.dumps(self.served) != f'"{self.served}"' or self.served == ADMIN:
            raise ValueError(f"{self.served!r} cannot be the name of a served model")


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
    """`/served/<name>`, percent-encoded, answers 200 there where the engine can answer for the name."""


@dataclass(frozen=True)
class Limits:
    """What the router bears."""

    max_request_bytes: int = 8 << 20
    idle_timeout_seconds: int = 600
    """Without a byte in either direction, and so also until an answer begins that is not streamed. Once it comes, it
    may take as long as it likes."""


def bootstrap(node: str, admin_port: int, folder: str = FOLDER) -> dict[str, Any]:
    """Return what Envoy is started with.

    Args:
        node: name of this router.
        admin_port: port of the admin interface, on loopback.
        folder: where the other files are.
    """

    def read(name: str) -> dict[str, Any]:
        return {"resource_api_version": "V3", "path_config_source": _file(folder, name)}

    endpoint = {"endpoint": {"address": _address("127.0.0.1", admin_port)}}
    admin = {"cluster_name": ADMIN, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {
        "node": {"id": node, "cluster": "lorikeet-router"},
        "admin": {"address": _address("127.0.0.1", admin_port)},
        "static_resources": {"clusters": [{"name": ADMIN, "type": "STATIC", "load_assignment": admin}]},
        "dynamic_resources": {"lds_config": read("listeners.json"), "cds_config": read("clusters.json")},
        "stats_config": {
            "histogram_bucket_settings": [{"match": {"prefix": f"{STATS}."}, "buckets": list(MILLISECONDS)}]
        },
    }


def listeners(
    port: int,
    status_port: int,
    limits: Limits,
    folder: str = FOLDER,
    host: str = "0.0.0.0",  # noqa: S104 - of a pod
) -> dict[str, Any]:
    """Return the listeners: of requests, with all that one passes, and of `/ready` and `/metrics`."""
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "router",
        # HTTP/2 would let a body pass that is larger than the listener's limit.
        "codec_type": "HTTP1",
        "use_remote_address": True,
        "access_log": [*_counted(), _written()],
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
        "request_timeout": "60s",  # until the request is there; the answer has no such end
    }
    listener = {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": "requests",
        "address": _address(host, port),
        # The script holds the whole body: what is larger is answered 413.
        "per_connection_buffer_limit_bytes": limits.max_request_bytes,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"resources": [listener, _status(status_port, host)]}


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
    answers = [_header(name, _said(key)) for name, key in _ANSWERS]
    host = {"name": "all", "domains": ["*"], "routes": [led, lost], "response_headers_to_add": answers}
    configuration = {"@type": f"{_TYPE}.config.route.v3.RouteConfiguration", "name": "routes", "virtual_hosts": [host]}
    return {"resources": [configuration]}


def script() -> str:
    """Return the script that leads requests."""
    return files(__package__).joinpath("router.lua").read_text()


STATS: Final = "lorikeet"
"""What the names of our metrics begin with, after Envoy's own prefix."""
MILLISECONDS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
"""Upper ends of the histograms' buckets."""
FIRST_BYTE: Final = "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:ms)%"
"""From the first byte of the request to the first byte of the answer's body."""


def _said(key: str) -> str:
    return f"%DYNAMIC_METADATA(lorikeet:{key})%"


def _counted() -> list[dict[str, Any]]:
    """Return the metrics of each model, variant and revision, which are empty where a request was not led."""
    labels = [{"name": name, "value_format": _said(name)} for name in ("model", "variant", "revision")]
    status = {"name": "status", "value_format": "%RESPONSE_CODE%"}

    def histogram(name: str, value: str) -> dict[str, Any]:
        return {"stat": {"name": name, "tags": labels}, "unit": "Milliseconds", "value_format": value}

    def logger(**metrics: Any) -> dict[str, Any]:
        kind = f"{_TYPE}.extensions.access_loggers.stats.v3.Config"
        return {
            "name": "envoy.access_loggers.stats",
            "typed_config": {"@type": kind, "stats_scope": {"prefix": STATS}, **metrics},
        }

    every = logger(
        counters=[{"stat": {"name": "requests", "tags": [*labels, status]}, "value_fixed": 1}],
        histograms=[histogram("request_ms", "%DURATION%")],
    )
    # Of what no engine has answered there is no such time, and Envoy would log an error each time.
    led = {"metadata_filter": {"matcher": _LED, "match_if_key_not_found": False}}
    answered = {"status_code_filter": {"comparison": _comparison("LE", 499)}}
    filtered = {"filter": {"and_filter": {"filters": [led, answered]}}}
    return [every, filtered | logger(histograms=[histogram("first_byte_ms", FIRST_BYTE)])]


def _written() -> dict[str, Any]:
    """Return the access log: one JSON object a request on standard output, nothing of its body."""
    fields = {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "path": "%REQ(:PATH)%",
        **{name: _said(name) for name in ("model", "variant", "revision")},
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "ms": "%DURATION%",
        "first_byte_ms": FIRST_BYTE,
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
    }
    configuration = {
        "@type": f"{_TYPE}.extensions.access_loggers.stream.v3.StdoutAccessLog",
        "log_format": {"json_format": fields},
    }
    return {"name": "envoy.access_loggers.stdout", "typed_config": configuration}


def _status(port: int, host: str) -> dict[str, Any]:
    """Return the listener of probes and Prometheus: two paths of the admin interface, which has dangerous ones, too."""
    paths = (("/ready", "/ready"), ("/metrics", "/stats/prometheus"))
    routes = [{"match": {"path": path}, "route": {"cluster": ADMIN, "prefix_rewrite": there}} for path, there in paths]
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "status",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [_filter("envoy.filters.http.router", "http.router.v3.Router")],
    }
    return {
        "@type": f"{_TYPE}.config.listener.v3.Listener",
        "name": "status",
        "address": _address(host, port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


_LED: Final = {
    "filter": "lorikeet",
    "path": [{"key": "variant"}],
    "value": {"string_match": {"safe_regex": {"regex": ".+"}}},
}
_ANSWERS: Final = (("x-lorikeet-variant", "variant"), ("x-lorikeet-revision", "revision"))
_UNFORGED: Final = {
    "name": "unforged",
    "typed_config": {
        "@type": f"{_TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        # The second one would choose vLLM's worker.
        "mutations": [{"remove": LED}, {"remove": "x-data-parallel-rank"}],
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


def _comparison(op: str, status: int) -> dict[str, Any]:
    return {"op": op, "value": {"default_value": status, "runtime_key": f"lorikeet.{op}.{status}"}}


def _error(message: str, kind: str, code: str) -> dict[str, Any]:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return {"json_format": {"error": error}}


def _reply(status: int, message: str, kind: str, code: str, **more: Any) -> dict[str, Any]:
    is_status = {"status_code_filter": {"comparison": _comparison("EQ", status)}}
    return {"filter": is_status, "body_format_override": _error(message, kind, code), **more}


_LOCAL_REPLIES: Final = {
    "mappers": [
        _reply(403, "this cannot be asked for here", "invalid_request_error", "forbidden"),
        _reply(408, "the request did not arrive in time", "invalid_request_error", "request_timeout"),
        _reply(413, "the body is larger than this router takes", "invalid_request_error", "body_too_large"),
        _reply(426, "ask by HTTP/1.1", "invalid_request_error", "upgrade_required"),
        _reply(431, "the headers are too large", "invalid_request_error", "headers_too_large"),
        _reply(500, "the router could not lead the request anywhere", "server_error", "not_led"),
        _reply(502, "the engine has answered nothing that is HTTP", "server_error", "bad_gateway"),
        _reply(
            503,
            "no replica can answer for this variant now: try again",
            "service_unavailable_error",
            "unavailable",
            headers_to_add=[{"header": {"key": "retry-after", "value": "5"}}],
        ),
        _reply(504, "the engine has not answered in time", "server_error", "timeout"),
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
    dns = {
        "@type": f"{_TYPE}.extensions.clusters.dns.v3.DnsCluster",
        "dns_refresh_rate": "1s",
        "dns_lookup_family": "V4_PREFERRED",
        "respect_dns_ttl": False,
    }
    protocol = {
        "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        # Before uvicorn closes a connection that was idle for five seconds: a request might just be on its way.
        "common_http_protocol_options": {"idle_timeout": "4s"},
    }
    return {
        "@type": f"{_TYPE}.config.cluster.v3.Cluster",
        "name": served,
        "cluster_type": {"name": "envoy.clusters.dns", "typed_config": dns},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        # One that is unhealthy gets no requests, though all were.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        # One that is gone gets none, whatever its last answer was.
        "ignore_health_on_host_removal": True,
        "load_assignment": {
            "cluster_name": served,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "interval_jitter_percent": 20,
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": f"/served/{quote(served, safe='')}", "host": "agent"},
            }
        ],
        "outlier_detection": {
            # Of a few replicas the half may be left out, and of one none. Envoy enforces gateway failures only if told.
            "consecutive_gateway_failure": 3,
            "enforcing_consecutive_gateway_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "max_ejection_percent": 50,
            "base_ejection_time": "5s",
            "interval": "1s",
            "successful_active_health_check_uneject_host": False,
        },
        # The engine queues; Envoy's default of 1,024 would answer 503 before it.
        "circuit_breakers": {
            "thresholds": [
                dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 1000000)
                | {"retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 100}}
            ]
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
