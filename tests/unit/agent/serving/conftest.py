"""A real S3 server, and a bucket with adapters."""

from pathlib import Path

import pytest

from tests.s3 import S3Server, bucket, s3, s3_server
from tests.unit.agent.serving.pod import Store

__all__ = ["bucket", "s3", "s3_server"]


@pytest.fixture
def store(s3: S3Server, bucket: str, tmp_path: Path) -> Store:
    return Store(s3, bucket, tmp_path / "runs")
