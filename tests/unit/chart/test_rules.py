"""The rules for Prometheus that the chart brings."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.unit.chart.exporters import all_metrics
from tests.unit.chart.helm import CHART, objects, of_kind, run
from tests.unit.chart.promtool import metrics_in, promtool

RULES = CHART / "files" / "rules.yaml"
TESTS = Path(__file__).with_name("rules_test.yaml")

Rule = dict[str, Any]


def load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def rules() -> list[Rule]:
    return [rule for group in load(RULES)["groups"] for rule in group["rules"]]


def alerts() -> list[Rule]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def test_prometheus_takes_the_rules() -> None:
    run(promtool(), "check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_rules_record_and_alerts_fire_as_their_tests_say() -> None:
    run(promtool(), "test", "rules", str(TESTS))


def test_a_threshold_that_is_changed_is_noticed(tmp_path: Path) -> None:
    text = RULES.read_text(encoding="utf-8")
    assert "> 3600" in text
    (tmp_path / "rules.yaml").write_text(text.replace("> 3600", "> 360"), encoding="utf-8")
    tests = re.sub(r"\S+/rules\.yaml", "rules.yaml", TESTS.read_text(encoding="utf-8"))
    (tmp_path / "tests.yaml").write_text(tests, encoding="utf-8")
    said = run(promtool(), "test", "rules", str(tmp_path / "tests.yaml"), check=False)
    assert said.returncode != 0
    assert "alertname: LorikeetJobStuck" in said.stderr


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_is_seen_to_fire_and_not_to_fire(rule: Rule) -> None:
    tests = [each for group in load(TESTS)["tests"] for each in group.get("alert_rule_test", [])]
    fires = {bool(each.get("exp_alerts")) for each in tests if each["alertname"] == rule["alert"]}
    assert fires == {True, False}


@pytest.mark.parametrize("name", sorted(recorded()))
def test_each_record_is_seen_to_be_made(name: str) -> None:
    tests = [each for group in load(TESTS)["tests"] for each in group.get("promql_expr_test", [])]
    asked = {metric for each in tests if each["exp_samples"] for metric in metrics_in(each["expr"])}
    used = {metric for rule in alerts() for metric in metrics_in(rule["expr"])}
    assert name in asked | used


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_it_is_what_it_is_and_what_to_do(rule: Rule) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description"}
    assert "kubectl " in rule["annotations"]["description"]


def test_the_readme_has_each_alert_and_no_other() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(Lorikeet\w+)` \|", readme, re.MULTILINE)) == sorted(r["alert"] for r in alerts())


async def test_rules_name_metrics_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = await all_metrics(tmp_path, monkeypatch) | recorded()
    named = {metric for rule in rules() for metric in metrics_in(rule["expr"])}
    assert named - there == set()


def test_the_chart_brings_the_rules_as_they_are() -> None:
    (made,) = of_kind(objects({"prometheusRule": {"enabled": True}}), "PrometheusRule")
    assert made["spec"] == load(RULES)
