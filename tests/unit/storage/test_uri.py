"""URIs are parsed into types, and no name leads out of its folder."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet_api.contract import PVC_DIR
from lorikeet_storage import StorageError
from lorikeet_storage.uri import HubLocation, PvcLocation, S3Location, parse, parse_s3, safe_relative


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("s3://bucket", S3Location("bucket", "")),
        ("s3://bucket/", S3Location("bucket", "")),
        ("s3://bucket/a/b.jsonl", S3Location("bucket", "a/b.jsonl")),
        ("s3://bucket/a/", S3Location("bucket", "a")),
        ("hf://org/name", HubLocation("org/name", "")),
        ("hf://org/set/data/train.parquet", HubLocation("org/set", "data/train.parquet")),
        ("pvc://claim/models/tiny", PvcLocation("claim", "models/tiny")),
    ],
)
def test_parse(uri: str, location: object) -> None:
    assert parse(uri) == location
    assert str(location) == uri.rstrip("/")


@pytest.mark.parametrize(
    "uri",
    ["bucket/a", "http://x/y", "s3://", "s3://b/a/../c", "s3://b//c", "hf://name", "pvc://claim", "pvc://claim/../etc"],
)
def test_refuses(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse(uri)
    assert caught.value.reason == "InvalidContract"
    assert uri in caught.value.message


def test_an_output_is_in_s3() -> None:
    with pytest.raises(StorageError, match="s3://bucket/path"):
        parse_s3("hf://org/name")


def test_prefixes_end_at_a_slash() -> None:
    assert S3Location("b", "models/tiny").prefix == "models/tiny/"
    assert S3Location("b", "").prefix == ""
    assert str(S3Location("b", "").child("x/y")) == "s3://b/x/y"


def test_claims_have_a_fixed_place() -> None:
    assert PvcLocation("claim", "a/b").local == Path(PVC_DIR, "claim/a/b")


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "a\0b"])
def test_names_that_lead_out(name: str) -> None:
    with pytest.raises(StorageError):
        safe_relative(name)


@given(st.text(alphabet="a./\0 \\", max_size=12))
def test_what_is_let_through_stays_inside(name: str) -> None:
    try:
        joined = Path(PVC_DIR, safe_relative(name))
    except StorageError:
        return
    assert ".." not in joined.parts
    assert joined.is_relative_to(PVC_DIR)
    assert joined != Path(PVC_DIR)
