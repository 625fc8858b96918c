"""Builds what Envoy reads: whom it listens to, who answers, and which share of the requests (pure).

Requests are led by `router.lua`. Envoy is started with `bootstrap.json`, and reads three more files, each again when it
changes: `listeners.json` never does (a change would drain connections), `clusters.json` has one cluster for each name
that engines serve, and `routes.json` the models and weights. The formats are those of Envoy's v3 API
(envoy.config.*.v3).
"""

from lorikeet_operator.serving.router.engines import clusters
from lorikeet_operator.serving.router.leading import routes
from lorikeet_operator.serving.router.listening import listeners, script
from lorikeet_operator.serving.router.start import bootstrap
from lorikeet_operator.serving.router.wanted import LED, Balancing, Engines, Limits, Route, Variant

__all__ = [
    "LED",
    "Balancing",
    "Engines",
    "Limits",
    "Route",
    "Variant",
    "bootstrap",
    "clusters",
    "listeners",
    "routes",
    "script",
]
