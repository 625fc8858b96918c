"""Adapters that cannot be served, added to a deployment in use: each is told, and takes nothing from the others."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e import colours
from e2e.colours import NAME
from e2e.load import Load, load
from e2e.serving import deployment, reached, steer, wait_for
from e2e.target import Target
from e2e.workspace import Workspace, condition

pytestmark = pytest.mark.e2e

GOOD = [colours.adapter("warm", job="warm"), colours.adapter("cold", job="cold")]


@pytest.fixture
def used(served_colours: Workspace) -> Iterator[Load]:
    """A client that asks all the while, and must be answered."""
    with load(served_colours, colours.plan(served_colours, concurrency=4, pause=0.5)) as client:
        yield client
        steer(served_colours, NAME, adapters=GOOD)
        wait_for(served_colours, NAME, "Ready", 120)
        report = client.until_answered(20)
        assert (report["failures"], report["wrong"]) == ([], [])


def told(workspace: Workspace, reason: str, **origin: Any) -> str:
    """Add an adapter, and return what is said of it. Raises TargetError if it is not this reason."""
    steer(workspace, NAME, adapters=[*GOOD, colours.adapter("odd", **origin)])
    status = wait_for(workspace, NAME, "AdaptersReady", 120, reason=reason)["status"]
    assert condition(status, "Degraded")["reason"] == reason
    assert {each["name"]: each["readyReplicas"] for each in status["adapters"] if each["name"] != "odd"} == {
        "warm": 2,
        "cold": 2,
    }
    return str(condition(status, "AdaptersReady")["message"])


def run_of(workspace: Workspace, name: str) -> str:
    """Return the URI of what the adapter `name` of the deployment is."""
    adapters = deployment(workspace, NAME)["status"]["adapters"]
    return next(str(each["uri"]) for each in adapters if each["name"] == name)


def test_a_uri_without_a_manifest(served_colours: Workspace, used: Load) -> None:
    uri = f"s3://adapters/{served_colours.namespace}/nothing"
    message = told(served_colours, "ManifestMissing", uri=uri)
    assert f"{uri} has neither manifest.json nor latest.json: publish an adapter there" in message


def test_a_file_that_is_cut_off(served_colours: Workspace, used: Load) -> None:
    store = served_colours.s3
    bucket, _, prefix = run_of(served_colours, "cold").removeprefix("s3://").partition("/")
    copy = f"{served_colours.namespace}/cut"
    for entry in store.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]:
        key = entry["Key"]
        content = store.get_object(Bucket=bucket, Key=key)["Body"].read()
        if key.endswith(".safetensors"):
            content = content[:-100]
        store.put_object(Bucket=bucket, Key=f"{copy}/{key.removeprefix(f'{prefix}/')}", Body=content)
    message = told(served_colours, "FileCorrupt", uri=f"s3://{bucket}/{copy}")
    assert "adapter_model.safetensors has" in message
    assert "restore the file, or publish the adapter again" in message


def test_an_adapter_of_another_base_model(
    served_colours: Workspace, used: Load, lorikeet: Target, tmp_path: Path
) -> None:
    other = colours.upload_base(lorikeet, tmp_path / "model", "colours-other", intermediate_size=96)
    served_colours.apply(colours.job(served_colours, "other", other, "green"))
    served_colours.wait_final("other", 240)
    message = told(served_colours, "BaseModelDiffers", job="other")
    assert "was trained on s3://models/colours-other" in message


def test_a_rank_above_what_the_engine_takes(served_colours: Workspace, used: Load, colours_base: str) -> None:
    served_colours.apply(colours.job(served_colours, "wide", colours_base, "green", rank=32))
    served_colours.wait_final("wide", 240)
    message = told(served_colours, "RankTooHigh", job="wide")
    assert "has rank 32, the engine takes at most 16: raise spec.engine.vllm.maxLoraRank" in message


def test_two_deployments_of_one_name_in_two_namespaces(served_colours: Workspace, colours_base: str) -> None:
    second = Workspace(served_colours.target, f"e2e-{secrets.token_hex(3)}")
    second.create()
    try:
        # What is called warm there is cold here.
        adapters = [colours.adapter("warm", uri=run_of(served_colours, "cold"))]
        routes = [{"model": colours.MODEL, "variants": [{"name": "a", "adapter": "warm"}]}]
        router = {"replicas": 1}
        second.apply(colours.deployment(colours_base, 1, adapters=adapters, routes=routes, router=router))
        wait_for(second, NAME, "Ready", 300)
        asked = {
            "model": colours.MODEL,
            "messages": [{"role": "user", "content": "What colour is sky?"}],
            "max_tokens": 32,
            "temperature": 0,
        }
        for workspace, colour in ((served_colours, "red"), (second, "blue")):
            with reached(workspace, NAME) as client:
                answer = client.post("/v1/chat/completions", json=asked, headers={"x-lorikeet-variant": "a"})
            assert set(answer.json()["choices"][0]["message"]["content"].split()) == {colour}
    finally:
        second.delete()
