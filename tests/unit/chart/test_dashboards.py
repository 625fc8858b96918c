"""Grafana's dashboards that the chart brings."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from e2e.prometheus import DASHBOARDS, dashboard_queries
from tests.unit.chart.exporters import all_metrics
from tests.unit.chart.helm import objects, of_kind
from tests.unit.chart.promtool import check_queries, metrics_in
from tests.unit.chart.test_rules import recorded

NAMES = ("deployments", "jobs")
VARIABLES = {
    "namespace": "team-a",
    "deployment": "chat",
    "model": "chat",
    "operator": "lorikeet-system",
    "__rate_interval": "5m",
}


def board(name: str) -> Any:
    return json.loads((DASHBOARDS / f"{name}.json").read_text(encoding="utf-8"))


def panels(name: str) -> list[Any]:
    return [panel for panel in board(name)["panels"] if panel["type"] != "row"]


def test_the_chart_brings_each_file_as_it_is() -> None:
    (made,) = of_kind(objects({"dashboards": {"enabled": True}}), "ConfigMap")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    files = {f"lorikeet-{path.name}": path.read_text(encoding="utf-8") for path in DASHBOARDS.iterdir()}
    assert made["data"].keys() == files.keys() == {f"lorikeet-{name}.json" for name in NAMES}
    for name, text in files.items():
        assert json.loads(made["data"][name]) == json.loads(text)


def test_prometheus_can_read_each_query(tmp_path: Path) -> None:
    queries = [query.expr for query in dashboard_queries(VARIABLES)]
    assert len(queries) == len(set(queries))
    check_queries(queries, tmp_path)
    with pytest.raises(AssertionError, match="could not parse expression"):
        check_queries([*queries, "sum(rate(up[5m])"], tmp_path)


def test_no_query_makes_a_zero_of_what_is_not_there() -> None:
    assert not [query for query in dashboard_queries(VARIABLES) if re.search(r"\bor\b|vector\(", query.expr)]


async def test_queries_name_metrics_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = await all_metrics(tmp_path, monkeypatch) | recorded()
    for query in dashboard_queries(VARIABLES):
        assert metrics_in(query.expr), query
        assert metrics_in(query.expr) <= there, query


@pytest.mark.parametrize("query", list(dashboard_queries(VARIABLES)), ids=lambda query: query.title)
def test_a_legend_names_labels_that_its_query_keeps(query: Any) -> None:
    assert query.labels
    outermost = re.search(r"\b(?:sum|max|min|count) by \(([^)]*)\)", query.expr)
    if outermost is not None and not query.expr.startswith("variant:"):
        kept = {label.strip() for label in outermost[1].split(",")} - {"le"}
        assert set(query.labels) == kept


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_can_be_imported_beside_others(name: str) -> None:
    whole = board(name)
    assert whole["uid"] == f"lorikeet-{name}"
    assert "id" not in whole  # of the Grafana that it was made with
    source, *others = whole["templating"]["list"]
    assert (source["name"], source["type"]) == ("datasource", "datasource")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert all(each["datasource"] == chosen for each in others)
    for panel in panels(name):
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_fills_in_the_variables_that_it_asks_for(name: str) -> None:
    whole = board(name)
    known = {each["name"] for each in whole["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(whole))) <= known


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows_and_has_a_place_of_its_own(name: str) -> None:
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels(name))
    places = sorted((each["gridPos"] for each in board(name)["panels"]), key=lambda at: (at["y"], at["x"]))
    for before, after in pairwise(places):
        beside = before["y"] == after["y"] and before["x"] + before["w"] <= after["x"]
        assert beside or before["y"] + before["h"] <= after["y"], after
    assert all(at["x"] + at["w"] <= 24 for at in places)


def test_variants_are_compared_by_all_that_matters_of_them() -> None:
    titles = [panel["title"] for panel in panels("deployments")]
    wanted = ["Side by side", "Requests", "Share of requests", "Errors", "Latency", "First byte", "Completion tokens"]
    assert [title for title in titles if title in wanted] == wanted
