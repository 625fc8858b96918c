#!/usr/bin/env python3
"""Writes the table of values in the chart's README from the comments in values.yaml.

A value's comment starts with `# -- `; the lines of comment after it go on. Every value needs one, its own or
that of a map or list around it.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

BEGIN: Final = "<!-- values: made by scripts/chart_readme.py from values.yaml -->\n"
END: Final = "<!-- end of values -->\n"
_KEY: Final = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][A-Za-z0-9]*):")
_COMMENT: Final = re.compile(r"^ *# ?(?P<text>.*)$")


def rows(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield (path, default, description) for every value with a comment, in the file's order."""
    values = YAML(typ="safe", pure=True).load(text)
    described: list[str] = []
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        if comment := _COMMENT.match(line):
            words = comment["text"]
            if words.startswith("-- "):
                described = [words.removeprefix("-- ")]
            elif described:
                described.append(words)
        elif key := _KEY.match(line):
            indent = len(key["indent"])
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, key["key"])]
            if described:
                value = values
                for _, name in path:
                    value = value[name]
                yield ".".join(name for _, name in path), value, " ".join(described)
            described = []
        else:
            described = []


def undescribed(text: str) -> list[str]:
    """Return the paths of values that no comment describes."""
    known = {path for path, _, _ in rows(text)}

    def leaves(value: Any, path: str) -> Iterator[str]:
        if path in known:
            return
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from leaves(item, f"{path}.{name}" if path else name)
        else:
            yield path

    return list(leaves(YAML(typ="safe", pure=True).load(text), ""))


def table(text: str) -> str:
    """Return the Markdown table of the values in `text`."""
    lines = ["| Value | Default | What it does |", "|---|---|---|"]
    for path, default, description in rows(text):
        cells = (f"`{path}`", f"`{json.dumps(default)}`", description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def updated(readme: str, values: str) -> str:
    """Return `readme` with the table between its two marks renewed."""
    before, mark, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ValueError(f"the README lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table(values)}\n{END}{after}"


def main() -> int:
    """Renew the README, or with --check tell whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the README would change")
    parser.add_argument("chart", nargs="?", type=Path, default=Path("charts/lorikeet"))
    arguments = parser.parse_args()
    readme: Path = arguments.chart / "README.md"
    values = (arguments.chart / "values.yaml").read_text(encoding="utf-8")
    if missing := undescribed(values):
        sys.stderr.write(f"values.yaml: no `# -- ` comment describes {', '.join(missing)}\n")
        return 1
    old = readme.read_text(encoding="utf-8")
    new = updated(old, values)
    if arguments.check:
        if old != new:
            sys.stderr.write(f"{readme} is not in step with values.yaml: run scripts/chart_readme.py\n")
        return int(old != new)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
