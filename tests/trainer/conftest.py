"""Fixtures of the tests that need a real S3 server."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]

from lorikeet_trainer import device
from tests.s3 import bucket, s3, s3_server

__all__ = ["bucket", "s3", "s3_server"]


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU without bfloat16; accelerate keeps the precision of a process's first run otherwise."""
    monkeypatch.setattr(device, "_cpu_flags", set)
    _forget_precision()
    yield
    _forget_precision()


def _forget_precision() -> None:
    AcceleratorState._reset_state()
    PartialState._reset_state()
