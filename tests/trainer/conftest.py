"""Fixtures of the tests that need a real S3 server."""

from tests.s3 import bucket, s3, s3_server

__all__ = ["bucket", "s3", "s3_server"]
