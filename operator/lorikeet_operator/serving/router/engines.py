"""Who answers: one cluster for each name that engines serve."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from lorikeet_operator.serving.router.shapes import TYPE, address
from lorikeet_operator.serving.router.wanted import Balancing, Engines, Route


def clusters(routes: Sequence[Route], engines: Engines, balancing: Balancing = "LeastRequest") -> dict[str, Any]:
    """Return a cluster for each name that is served: all engines, of which those get requests that have it loaded."""
    served = sorted({variant.served for route in routes for variant in route.variants})
    return {"resources": [_cluster(name, engines, balancing) for name in served]}


def _cluster(served: str, engines: Engines, balancing: Balancing) -> dict[str, Any]:
    endpoint = {
        "address": address(engines.host, engines.port),
        "health_check_config": {"port_value": engines.agent_port},
    }
    dns = {
        "@type": f"{TYPE}.extensions.clusters.dns.v3.DnsCluster",
        "dns_refresh_rate": "1s",
        "dns_lookup_family": "V4_PREFERRED",
        "respect_dns_ttl": False,
    }
    protocol = {
        "@type": f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http_protocol_options": {}},
        # Before uvicorn closes a connection that was idle for five seconds: a request might just be on its way.
        "common_http_protocol_options": {"idle_timeout": "4s"},
    }
    # One that is unhealthy gets no requests, though all were.
    chosen: dict[str, Any] = {"healthy_panic_threshold": {"value": 0}}
    if balancing == "PrefixHash":
        # No engine gets more than a quarter above the mean of the requests in flight.
        chosen["consistent_hashing_lb_config"] = {"hash_balance_factor": 125}
    return {
        "@type": f"{TYPE}.config.cluster.v3.Cluster",
        "name": served,
        "cluster_type": {"name": "envoy.clusters.dns", "typed_config": dns},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocol},
        "connect_timeout": "2s",
        "lb_policy": "RING_HASH" if balancing == "PrefixHash" else "LEAST_REQUEST",
        "common_lb_config": chosen,
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
