"""What Envoy is started with."""

from typing import Any, Final

from lorikeet_operator.serving.router.observed import BUCKETS
from lorikeet_operator.serving.router.shapes import TYPE, address, watched
from lorikeet_operator.serving.router.wanted import ADMIN

MAX_CONNECTIONS: Final = 10_000
"""Connections of clients; one more is closed at once."""
_HEAP: Final = "envoy.resource_monitors.fixed_heap"
_CONNECTIONS: Final = "envoy.resource_monitors.global_downstream_max_connections"


def bootstrap(
    node: str,
    admin_port: int,
    folder: str,
    *,
    max_heap_bytes: int | None = None,
    max_connections: int = MAX_CONNECTIONS,
) -> dict[str, Any]:
    """Return what Envoy is started with.

    Args:
        node: name of this router.
        admin_port: port of the admin interface, on loopback.
        folder: where the other files are.
        max_heap_bytes: what memory there is. At 70 % of it no more requests are taken: those that were may still grow,
            and the script's memory is not counted. None: whatever there is.
        max_connections: how many connections of clients it takes.
    """
    admin_address = address("127.0.0.1", admin_port)
    admin = {"cluster_name": ADMIN, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": admin_address}}]}]}
    return {
        "node": {"id": node, "cluster": "lorikeet-router"},
        "admin": {"address": admin_address},
        "static_resources": {"clusters": [{"name": ADMIN, "type": "STATIC", "load_assignment": admin}]},
        "dynamic_resources": {
            "lds_config": watched(folder, "listeners.json"),
            "cds_config": watched(folder, "clusters.json"),
        },
        "stats_config": {"histogram_bucket_settings": BUCKETS},
        "overload_manager": _overload(max_heap_bytes, max_connections),
    }


def _overload(max_heap_bytes: int | None, max_connections: int) -> dict[str, Any]:
    """Return what is done before memory or connections run out."""

    def monitor(name: str, kind: str, **configuration: int) -> dict[str, Any]:
        return {"name": name, "typed_config": {"@type": f"{TYPE}.extensions.resource_monitors.{kind}", **configuration}}

    monitors = [
        monitor(
            _CONNECTIONS,
            "downstream_connections.v3.DownstreamConnectionsConfig",
            max_active_downstream_connections=max_connections,
        )
    ]
    if max_heap_bytes is None:
        return {"resource_monitors": monitors}
    monitors.append(monitor(_HEAP, "fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=max_heap_bytes))
    return {
        "refresh_interval": "0.1s",
        "resource_monitors": monitors,
        "actions": [
            _action("shrink_heap", 0.6),
            # There is no other way: Envoy resets no request of HTTP/1.1 for what it holds.
            _action("stop_accepting_requests", 0.7),
        ],
    }


def _action(name: str, threshold: float) -> dict[str, Any]:
    trigger = {"name": _HEAP, "threshold": {"value": threshold}}
    return {"name": f"envoy.overload_actions.{name}", "triggers": [trigger]}
