"""A real Prometheus scrapes a cluster in use as the monitors say, and every query of the dashboards has answers."""

import math
import os
import secrets
import signal
import time
from pathlib import Path

import pytest

from e2e import colours
from e2e.deploy import NAMESPACE
from e2e.load import load
from e2e.node import on_the_node, process_of
from e2e.prometheus import Prometheus, Query, dashboard_queries, prometheus
from e2e.serving import pods
from e2e.small import MINUTES, request, until
from e2e.workspace import Workspace

# Its client takes all that the cores have left.
pytestmark = [pytest.mark.e2e, pytest.mark.alone]

WINDOW = "15m:2s"
BETWEEN_SCRAPES = {"Lorikeet / Jobs: Queue", "Lorikeet / Jobs: Oldest key", "Lorikeet / Jobs: Reconciles at work"}
"""What is over within milliseconds: a scrape every other second may never see it above 0."""


def lacks(prometheus: Prometheus, query: Query) -> str:
    """Return what an answer to a query lacks, empty where it is as it should be."""
    found = prometheus.query(f"max_over_time(({query.expr})[{WINDOW}])")
    if not found:
        return f"{query.title} ({query.expr}): no series"
    for series in found:
        if missing := [name for name in query.labels if not series.labels.get(name)]:
            return f"{query.title}: a series without {missing}: {series.labels}"
    values = [series.value for series in found if not math.isnan(series.value)]
    if query.title not in BETWEEN_SCRAPES and not any(value > 0 for value in values):
        return f"{query.title} ({query.expr}): nothing above 0"
    return ""


def make_errors(workspace: Workspace) -> None:
    """Stop the agents of all engines for a moment, so that routers know no replica to ask."""
    agents = [process_of(pod, b"lorikeet-agent") for pod in pods(workspace, colours.NAME, "engine")]
    try:
        for agent in agents:
            os.kill(agent, signal.SIGSTOP)
        time.sleep(8)  # of which routers notice after two or three
    finally:
        for agent in agents:
            os.kill(agent, signal.SIGCONT)


@on_the_node
def test_every_query_of_the_dashboards_has_named_series(
    served_colours: Workspace, workspace: Workspace, small: str, tmp_path: Path
) -> None:
    variables = {
        "namespace": served_colours.namespace,
        "deployment": colours.NAME,
        "model": colours.MODEL,
        "operator": NAMESPACE,
        "__rate_interval": "20s",
    }
    queries = list(dashboard_queries(variables))
    assert len(queries) > 40
    plan = colours.plan(served_colours, concurrency=50)
    name = f"watched-{secrets.token_hex(2)}"
    with prometheus(served_colours.target, tmp_path, interval="2s") as scraped, load(served_colours, plan) as client:
        workspace.apply(request(workspace, name, small, training=MINUTES))
        client.until_answered(300)
        make_errors(served_colours)
        client.until_answered(100)
        story = "\n".join

        def lacking() -> list[str]:
            return [lack for query in queries if (lack := lacks(scraped, query))]

        until(lambda: not lacking(), "answer to each query", 180, lambda: story(lacking()), every=5)
        assert scraped.query('ALERTS{alertname="LorikeetRouterRejectedConfig"}') == []
