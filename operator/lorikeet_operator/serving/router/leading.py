"""Which models there are, and who answers for them with which weight."""

import json
from collections.abc import Sequence
from typing import Any, Final

from lorikeet_operator.serving.router.shapes import LUA, TYPE, said
from lorikeet_operator.serving.router.wanted import LED, Balancing, Limits, Route

PREFIX: Final = "x-lorikeet-prefix"
"""Header in which the script tells the balancer of the prompt's beginning; `router.lua` knows it, too. The engine gets
it: what a route removes from a request, Envoy removes before it chooses an engine."""
_ANSWERS: Final = (("x-lorikeet-variant", "variant"), ("x-lorikeet-revision", "revision"))
_RETRIES: Final = {
    # Where no byte of an answer has come. Once: a request that brings an engine down must not bring down all of them.
    "retry_on": "reset",
    "num_retries": 1,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": f"{TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
        }
    ],
    # A host is drawn until it is another one: of two, the one that has failed is the less busy one, and drawn often.
    "host_selection_retry_max_attempts": "50",
}


def routes(models: Sequence[Route], limits: Limits, balancing: Balancing = "LeastRequest") -> dict[str, Any]:
    """Return which models there are, and who answers for them with which weight."""
    known: dict[str, Any] = {f"model {route.model}": _model(route, balancing) for route in models}
    known["list"] = json.dumps({"object": "list", "data": [_listed(route.model) for route in models]})
    route: dict[str, Any] = {
        "cluster_header": LED,
        "cluster_not_found_response_code": "SERVICE_UNAVAILABLE",
        "timeout": "0s",  # an answer is streamed for as long as it takes
        "idle_timeout": f"{limits.idle_timeout_seconds}s",
        "retry_policy": _RETRIES,
    }
    if balancing == "PrefixHash":
        route["hash_policy"] = [{"header": {"header_name": PREFIX}}]
    led = {
        "match": {"prefix": "/", "headers": [{"name": LED, "present_match": True}]},
        "route": route,
        "request_headers_to_remove": [LED],
    }
    # Where a request ends that the script did not lead, such as after an error in it.
    lost = {
        "match": {"prefix": "/"},
        "metadata": {"filter_metadata": {LUA: known}},
        "direct_response": {"status": 500},
    }
    answers = [_header(name, said(key)) for name, key in _ANSWERS]
    host = {"name": "all", "domains": ["*"], "routes": [led, lost], "response_headers_to_add": answers}
    configuration = {
        "@type": f"{TYPE}.config.route.v3.RouteConfiguration",
        "name": "routes",
        "virtual_hosts": [host],
    }
    return {"resources": [configuration]}


def _model(route: Route, balancing: Balancing) -> dict[str, Any]:
    """Return what the script is told of a model."""
    variants = [{"name": each.name, "served": each.served, "weight": each.weight} for each in route.variants]
    sticky = {"sticky": route.sticky.lower()} if route.sticky else {}
    return {"variants": variants, "prefix": balancing == "PrefixHash", **sticky}


def _listed(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "lorikeet"}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
