"""A ModelDeployment whose engine is started with its adapters and loads none while it runs."""

import pytest

from e2e import colours
from e2e.colours import MODEL, NAME
from e2e.load import load
from e2e.serving import deployment, pods, served, steer, wait_for
from e2e.workspace import Workspace

pytestmark = pytest.mark.e2e


def test_a_changed_adapter_comes_with_another_engine_and_fails_nothing(workspace: Workspace, colours_base: str) -> None:
    for name, colour in (("old", "red"), ("new", "blue")):
        workspace.apply(colours.job(workspace, name, colours_base, colour))
    workspace.apply(
        colours.deployment(
            colours_base,
            replicas=1,
            engine={"vllm": {"hotLoading": False, "args": ["--enforce-eager"]}},
            adapters=[colours.adapter("cold", job="old")],
            routes=[{"model": MODEL, "variants": [{"name": "b", "adapter": "cold"}]}],
        )
    )
    old = served(wait_for(workspace, NAME, "Ready", 400)["status"], "cold")
    engine = pods(workspace, NAME, "engine")[0]
    with load(workspace, colours.plan(workspace, concurrency=2, pause=0.5, cold="red|blue")) as client:
        client.until_answered(20)
        assert set(client.report()["revisions"]) == {old}
        workspace.wait_final("new")
        steer(workspace, NAME, adapters=[colours.adapter("cold", job="new")])
        wait_for(workspace, NAME, "Ready", 400)
        report = client.until_answered(20)
    new = served(deployment(workspace, NAME)["status"], "cold")
    assert new != old
    assert set(report["revisions"]) == {old, new}
    assert report["timeline"][-1][2] == new
    assert (report["failures"], report["wrong"]) == ([], [])
    assert engine["metadata"]["name"] not in [pod["metadata"]["name"] for pod in pods(workspace, NAME, "engine")]
