"""A log line is read back as it was written."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet_run import log


def written(**fields: object) -> str:
    record = logging.LogRecord("lorikeet", logging.INFO, "", 0, "step", None, None)
    record.fields = fields
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(log._KeyValue())
    handler.emit(record)
    return out.getvalue()


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), st.text()))
def test_any_text_comes_back(fields: dict[str, str]) -> None:
    fields = {f"x_{name}": value for name, value in fields.items()}
    read = log.parse(written(**fields))
    assert {name: read[name] for name in fields} == fields


@pytest.mark.parametrize(
    "text", ["", "x=1", 'print("a=\\q")', "Traceback (most recent call last):", 'time=1 event="half', 'time=1 x="\\q"']
)
def test_what_others_print_has_no_fields(text: str) -> None:
    assert log.parse(text) == {}
