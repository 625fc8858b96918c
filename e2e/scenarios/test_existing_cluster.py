"""`CLUSTER=existing`: the same commands on a cluster of the user's, which is never guessed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.config import CONTEXT
from e2e.cluster.paths import CHECKOUT
from e2e.deploy import NAMESPACE
from e2e.target import NEEDED, Target, as_existing
from e2e.workspace import PROFILE, PROFILES, profile

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.alone,
    pytest.mark.skipif(os.environ.get("CLUSTER") == "existing", reason="every scenario runs so already"),
]


def make(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name not in (*NEEDED, "CLUSTER", "MAKEFLAGS")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=CHECKOUT, env={**outside, **environment}, capture_output=True, text=True)


@pytest.fixture
def existing(lorikeet: Target, tmp_path: Path) -> dict[str, str]:
    """The development cluster as a user's: in a kubeconfig whose current context is another cluster, which is gone."""
    config = json.loads(Path(lorikeet.kubeconfig).read_text())
    config["clusters"].append({"name": "gone", "cluster": {"server": "https://127.0.0.1:9"}})
    config["contexts"] = [
        {"name": "gone", "context": {"cluster": "gone", "user": config["users"][0]["name"]}},
        {"name": "mine", "context": config["contexts"][0]["context"]},
    ]
    config["current-context"] = "gone"
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    assert lorikeet.context == CONTEXT
    return {**as_existing(lorikeet), "KUBECONFIG": str(kubeconfig), "KUBE_CONTEXT": "mine"}


@pytest.mark.parametrize("goal", ["deploy", "demo"])
def test_a_context_that_is_not_named_is_refused(existing: dict[str, str], goal: str) -> None:
    del existing["KUBE_CONTEXT"]
    refused = make(existing, goal)
    assert refused.returncode != 0
    assert "KUBE_CONTEXT: the context of your kubeconfig to use; it is never guessed" in refused.stderr


def test_the_scenarios_run_in_the_context_that_is_named(existing: dict[str, str]) -> None:
    deployed = make(existing, "deploy")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    assert "Lorikeet runs in namespace lorikeet-system" in deployed.stdout
    run = make(existing, "e2e", "SCENARIOS=e2e/scenarios/test_bad_input.py -k missing_profile")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 passed" in run.stdout


def test_the_demo_touches_nothing_where_somebody_else_has_the_default_profile(
    lorikeet: Target, existing: dict[str, str]
) -> None:
    release = ("list", "--namespace", NAMESPACE, "--output", "json")
    before = lorikeet.helm(*release)
    lorikeet.kubectl("label", PROFILES, PROFILE, "app.kubernetes.io/part-of=somebody-elses", "--overwrite")
    try:
        refused = make(existing, "demo")
    finally:
        lorikeet.apply([profile(lorikeet)])
    assert refused.returncode != 0
    assert f"the cluster has a TuningProfile '{PROFILE}' that is not ours" in refused.stderr
    assert lorikeet.helm(*release) == before


def test_a_context_that_does_not_exist_is_told(existing: dict[str, str]) -> None:
    refused = make({**existing, "KUBE_CONTEXT": "mistyped"}, "deploy")
    assert refused.returncode != 0
    assert "mistyped" in refused.stderr
