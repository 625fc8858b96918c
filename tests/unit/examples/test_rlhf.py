"""The chain of three: each job waits for those that it names, and begins with what they have made."""

from pathlib import Path
from typing import Any

from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.yaml import load_all
from lorikeet_cli.main import main
from lorikeet_operator.finetune.resolve import resolve
from tests.resources import profile

CHAIN = Path(__file__).parents[3] / "examples" / "rlhf.yaml"


def finished(body: dict[str, Any], *earlier: FineTuneJob) -> FineTuneJob:
    """Return a job that has published, on what the earlier ones have."""
    body = {**body, "metadata": {**body["metadata"], "namespace": "team-a"}}
    resolved = resolve(FineTuneJob.parse(body), profile(), "trainer:test", *earlier).to_wire()
    name = body["metadata"]["name"]
    artifacts = {
        "uri": f"s3://adapters/{name}/r1",
        "runId": "r1",
        "revision": "ab",
        "sha256": "ab" * 32,
        "sizeBytes": 1,
    }
    return FineTuneJob.parse({**body, "status": {"phase": "Succeeded", "resolved": resolved, "artifacts": artifacts}})


def test_every_job_of_it_is_sound() -> None:
    assert main(["validate", "--offline", "-f", str(CHAIN)]) == 0


def test_the_last_one_goes_on_from_the_first_and_is_rewarded_by_the_second() -> None:
    sft, reward, last = load_all(CHAIN)
    rlhf = finished(last, finished(sft), finished(reward))
    assert rlhf.status.resolved is not None
    contract = rlhf.status.resolved.contract
    assert contract.start is not None
    assert contract.start.uri == "s3://adapters/support-sft/r1"
    assert contract.objective.rlhf is not None
    assert [model.uri for model in contract.objective.rlhf.models] == ["s3://adapters/support-reward/r1"]
    assert contract.method == FineTuneJob.parse(sft).spec.method
