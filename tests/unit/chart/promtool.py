"""Prometheus' own tool, which reads rules and queries as Prometheus does."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from shutil import which

import pytest

from tests.unit.chart.helm import run


def promtool() -> str:
    """Return its path; skip if there is none."""
    found = which("promtool")
    if found is None:
        pytest.skip("there is no promtool here: Debian's package prometheus has it")
    return found


def check_queries(queries: Iterable[str], folder: Path) -> None:
    """Require that Prometheus can parse each query."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    assert rules
    file = folder / "queries.json"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    run(promtool(), "check", "rules", str(file))


def metrics_in(query: str) -> set[str]:
    """Return the metrics that a query names."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    # What is called is a function; what is left beside operators is a metric.
    return set(re.findall(r"(?<![\w:])[a-zA-Z_][\w:]*(?![\w:]|\s*\()", bare)) - {"and", "or", "unless"}
