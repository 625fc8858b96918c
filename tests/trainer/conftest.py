"""Fixtures of the tests that need a real S3 server."""

from tests.s3 import s3, s3_server

__all__ = ["s3", "s3_server"]
