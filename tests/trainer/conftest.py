"""Fixtures of the tests that need a real S3 server."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]

from lorikeet_trainer import device
from tests.s3 import S3Server, bucket, s3, s3_server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

__all__ = ["bucket", "s3", "s3_server"]


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model that knows the wrong answers, and the right ones."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "pretrained", pretrained=True), "pretrained")
        yield made


@pytest.fixture
def any_precision() -> Iterator[None]:
    """accelerate keeps the precision of a process's first run otherwise."""
    _forget_precision()
    yield
    _forget_precision()


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch, any_precision: None) -> None:
    """A CPU without bfloat16."""
    monkeypatch.setattr(device, "_cpu_flags", set)


def _forget_precision() -> None:
    AcceleratorState._reset_state()
    PartialState._reset_state()
