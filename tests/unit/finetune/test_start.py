"""A job that goes on from an earlier one: what it begins with, and how it waits."""

from typing import Any

import pytest

from lorikeet_api.finetunejob import FineTuneJob
from lorikeet_api.request import Refused
from lorikeet_operator.finetune.resolve import resolve
from lorikeet_operator.kinds import FINETUNEJOB
from lorikeet_operator.kube.kinds import JOB, Key
from tests.resources import job, profile
from tests.unit.finetune.test_reconcile import NAME, World, request

IMAGE = "trainer:test"
FROM = {"from": {"fineTuneJobRef": {"name": "sft-v1"}}}
EARLIER = Key("team-a", "sft-v1")
ARTIFACTS: dict[str, Any] = {
    "uri": "s3://adapters/team-a/sft-v1/r1",
    "runId": "r1",
    "revision": "abababab",
    "sha256": "ab" * 32,
    "sizeBytes": 3,
}
COMMIT = "c" * 40


def status(
    *, phase: str = "Succeeded", message: str = "", pins: list[str] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return the status of an earlier job with this spec, as the operator would have left it."""
    resolved = resolve(job("sft-v1", **spec), profile(), IMAGE)
    contract = resolved.contract.model_copy(update={"pins": pins})
    done = resolved.model_copy(update={"contract": contract}).to_wire()
    made = {"artifacts": ARTIFACTS} if phase == "Succeeded" else {}
    return {"phase": phase, "message": message, "resolved": done, **made}


def earlier(**changes: Any) -> FineTuneJob:
    """Return a job that has published: its spec, or parts of its status."""
    about = {name: changes.pop(name) for name in ("phase", "message", "pins") if name in changes}
    done = job("sft-v1", **changes)
    return FineTuneJob.parse({**done.to_wire(), "status": status(**about, **changes)})


def refusal(before: FineTuneJob, **spec: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        resolve(job(**{"model": FROM, **spec}), profile(), IMAGE, before)
    return refused.value


def test_an_adapter_is_trained_further_on_its_own_base_by_its_own_method() -> None:
    method = {"lora": {"rank": 8, "alpha": 8, "rsLora": True, "loraPlusRatio": 4.0}}
    contract = resolve(job(model=FROM), profile(), IMAGE, earlier(method=method)).contract
    assert contract.model.uri == "s3://models/smollm2-135m"
    assert contract.start is not None
    assert contract.start.to_wire() == {"uri": ARTIFACTS["uri"], "sha256": ARTIFACTS["sha256"]}
    assert contract.method == earlier(method=method).spec.method
    assert contract.training.learning_rate == 2e-4


def test_a_base_of_the_hub_is_taken_at_the_commit_that_was_trained_on() -> None:
    hub = {"uri": "hf://org/model", "revision": "main", "secretRef": {"name": "hf-token"}}
    contract = resolve(job(model=FROM), profile(), IMAGE, earlier(model=hub, pins=[COMMIT, "d" * 64])).contract
    assert (contract.model.revision, contract.model.secret_ref and contract.model.secret_ref.name) == (
        COMMIT,
        "hf-token",
    )
    own = resolve(job(model={**FROM, "secretRef": {"name": "mine"}}), profile(), IMAGE, earlier(model=hub)).contract
    assert (own.model.revision, own.model.secret_ref and own.model.secret_ref.name) == ("main", "mine")
    stored = resolve(job(model=FROM), profile(), IMAGE, earlier(pins=["e" * 64, "d" * 64])).contract
    assert stored.model.revision is None, "a digest of a listing is no revision"


@pytest.mark.parametrize("method", [None, {"full": {}}, {"qlora": {"rank": 4}}, {"bottleneck": {}}])
def test_a_model_that_was_trained_whole_is_the_base_of_any_method(method: dict[str, Any] | None) -> None:
    spec: dict[str, Any] = {} if method is None else {"method": method}
    contract = resolve(job(model=FROM, **spec), profile(), IMAGE, earlier(method={"full": {}})).contract
    assert (contract.model.uri, contract.start) == (f"{ARTIFACTS['uri']}/model", None)
    assert contract.method == resolve(job(**spec), profile(), IMAGE).contract.method


def test_a_reward_model_is_not_gone_on_from() -> None:
    refused = refusal(earlier(objective={"reward": {}}, method={"lora": {}}))
    assert refused.reason == "InvalidSpec"
    assert "has published a reward model" in refused.message


def test_a_reward_model_does_not_begin_with_an_adapter() -> None:
    refused = refusal(earlier(method={"lora": {}}), objective={"reward": {}})
    assert refused.reason == "InvalidSpec"
    assert "objective reward begins with an adapter of its own" in refused.message


def test_a_chain_goes_on_with_the_last_ones_adapter() -> None:
    first = earlier(method={"lora": {"rank": 8}})
    second = resolve(job("dpo-v1", model=FROM), profile(), IMAGE, first)
    done = {"phase": "Succeeded", "resolved": second.to_wire(), "artifacts": {**ARTIFACTS, "sha256": "cd" * 32}}
    middle = FineTuneJob.parse({**job("dpo-v1", model=FROM).to_wire(), "status": done})
    third = resolve(job(model={"from": {"fineTuneJobRef": {"name": "dpo-v1"}}}), profile(), IMAGE, middle).contract
    assert third.start is not None
    assert (third.model, third.method, third.start.sha256) == (second.contract.model, second.contract.method, "cd" * 32)


def test_how_it_is_trained_may_differ_where_the_adapter_does_not() -> None:
    lora = {"lora": {"rank": 8, "dropout": 0.2, "loraPlusRatio": 2.0, "targetModules": ["v_proj", "q_proj"]}}
    before = earlier(method={"qlora": {"rank": 8, "targetModules": ["q_proj", "v_proj"]}})
    asked = job(model=FROM, method=lora)
    assert resolve(asked, profile(), IMAGE, before).contract.method == asked.spec.method


@pytest.mark.parametrize(
    ("before", "asked", "words"),
    [
        ({"lora": {"rank": 8}}, {"lora": {}}, "create this job with rank: 8;"),
        ({"lora": {"alpha": 8, "rsLora": True}}, {"qlora": {}}, "with alpha: 8, rsLora: true;"),
        ({"lora": {"dora": True}}, {"lora": {}}, "with dora: true;"),
        (
            {"lora": {"targetModules": ["v_proj", "q_proj"], "modulesToSave": ["norm"]}},
            {"lora": {}},
            'with targetModules: ["q_proj", "v_proj"], modulesToSave: ["norm"];',
        ),
        ({"lora": {}}, {"lora": {"init": "pissa", "dropout": 0}}, 'with init: "default";'),
        ({"qlora": {}}, {"lora": {"init": "olora", "dropout": 0}}, 'with init: "default";'),
        ({"lora": {}}, {"full": {}}, "which full does not train further"),
        ({"qlora": {}}, {"bottleneck": {}}, "which bottleneck does not train further"),
        ({"bottleneck": {}}, {"lora": {}}, "whose modules no run goes on with"),
        ({"lora": {"init": "olora", "dropout": 0, "rsLora": True}}, None, "no whole number"),
        ({"lora": {"init": "pissa", "dropout": 0, "rank": 512}}, None, "rank 1024 and alpha 64"),
    ],
)
def test_what_cannot_go_on_is_refused_with_what_to_write(
    before: dict[str, Any], asked: dict[str, Any] | None, words: str
) -> None:
    spec = {} if asked is None else {"method": asked}
    refused = refusal(earlier(method=before), **spec)
    assert refused.reason == "InvalidSpec"
    assert words in refused.message


def test_a_difference_is_trained_further_as_the_plain_adapter_that_it_is() -> None:
    pissa = {"lora": {"init": "pissa", "dropout": 0, "rank": 8, "alpha": 24}}
    method = resolve(job(model=FROM), profile(), IMAGE, earlier(method=pissa)).contract.method
    assert method.lora is not None
    assert (method.lora.init, method.lora.rank, method.lora.alpha) == ("default", 16, 48)
    again = {"lora": {"rank": 16, "alpha": 48}}
    assert resolve(job(model=FROM, method=again), profile(), IMAGE, earlier(method=pissa)).contract.method.lora
    assert "rank: 16, alpha: 48, init" in refusal(earlier(method=pissa), method=pissa).message


REWARDED: dict[str, Any] = {
    "model": {"uri": "s3://models/smollm2-135m"},
    "objective": {"rlhf": {"rewards": [{"model": {"fineTuneJobRef": {"name": "sft-v1"}}, "weight": 2.0}]}},
}


def test_a_reward_model_of_a_job_is_pinned_by_where_it_lies_and_what_it_is() -> None:
    contract = resolve(job(**REWARDED), profile(), IMAGE, earlier(objective={"reward": {}})).contract
    assert contract.objective.rlhf is not None
    pinned = {"uri": ARTIFACTS["uri"], "sha256": ARTIFACTS["sha256"]}
    assert [reward.to_wire() for reward in contract.objective.rlhf.rewards] == [{"model": pinned, "weight": 2.0}]
    named = {"rlhf": {"rewards": [{"model": pinned, "weight": 2.0}]}}
    assert resolve(job(**{**REWARDED, "objective": named}), profile(), IMAGE).contract.run_id == contract.run_id


def test_a_model_without_a_number_to_give_is_no_reward() -> None:
    refused = refusal(earlier(method={"lora": {}}), **REWARDED)
    assert refused.reason == "InvalidSpec"
    assert "has published no reward model, its objective is sft: name a job of objective reward in" in refused.message


async def test_a_job_waits_for_its_reward_model_and_for_what_it_goes_on_from(world: World) -> None:
    other = Key("team-a", "reward-v1")
    rewards = [{"model": {"fineTuneJobRef": {"name": other.name}}}]
    spec = request(model=FROM, objective={"rlhf": {"rewards": rewards}})["spec"]
    world.change(FINETUNEJOB, NAME, spec=spec)
    reward = {**earlier_body(), "metadata": {**earlier_body()["metadata"], "name": other.name, "uid": "the reward's"}}
    world.put(FINETUNEJOB, {**earlier_body(), "status": status()})
    await world.reconcile()
    assert world.condition("Validated")["reason"] == "JobNotFound"
    assert "there is no FineTuneJob reward-v1" in world.status["message"]
    there = world.put(FINETUNEJOB, {**reward, "status": {"phase": "Running"}})
    assert NAME in world.controller.keys_for(FINETUNEJOB, there)
    await world.reconcile()
    assert (world.condition("Validated")["reason"], world.made(JOB)) == ("JobNotFinished", 0)
    assert "reward-v1 is Running: this job, which names it in spec.objective.rlhf" in world.status["message"]
    world.change(FINETUNEJOB, other, status=status(objective={"reward": {}}))
    await world.reconcile()
    assert world.made(JOB) == 1


def test_what_lies_in_another_store_is_refused() -> None:
    elsewhere = profile(storage={"uri": "s3://adapters", "endpoint": "http://other:9000"})
    with pytest.raises(Refused, match=r"has published to http://s3:7070.*reads http://other:9000"):
        resolve(job(model=FROM), elsewhere, IMAGE, earlier())


def test_what_a_run_begins_with_is_part_of_its_id() -> None:
    bare, begun = resolve(job(), profile(), IMAGE).contract, resolve(job(model=FROM), profile(), IMAGE, earlier())
    assert (bare.model, bare.method) == (begun.contract.model, begun.contract.method)
    assert bare.run_id != begun.contract.run_id
    assert bare.run_id == "2dadb74f617bc369", "requests of today find what those of yesterday have made"


@pytest.mark.parametrize("phase", ["Pending", "Running", "Suspended"])
async def test_it_waits_for_a_job_that_is_not_finished_and_begins_by_itself(world: World, phase: str) -> None:
    world.change(FINETUNEJOB, NAME, spec=request(model=FROM)["spec"])
    before = world.put(FINETUNEJOB, {**earlier_body(), "status": {"phase": phase}})
    assert await world.reconcile() is None
    finding = world.condition("Validated")
    assert (world.status["phase"], finding["status"], finding["reason"]) == ("Pending", "False", "JobNotFinished")
    assert f"sft-v1 is {phase}" in world.status["message"]
    writes = len(world.api.writes)
    await world.reconcile()
    assert (len(world.api.writes), world.made(JOB)) == (writes, 0)
    assert NAME in world.controller.keys_for(FINETUNEJOB, before)
    world.change(FINETUNEJOB, EARLIER, status=status())
    await world.reconcile()
    assert world.made(JOB) == 1
    assert world.status["resolved"]["contract"]["start"]["sha256"] == ARTIFACTS["sha256"]
    assert NAME not in world.controller.keys_for(FINETUNEJOB, before), "it has begun"


async def test_a_job_that_is_not_there_is_waited_for(world: World) -> None:
    world.change(FINETUNEJOB, NAME, spec=request(model=FROM)["spec"])
    await world.reconcile()
    assert world.condition("Validated")["reason"] == "JobNotFound"
    there = world.put(FINETUNEJOB, {**earlier_body(), "status": status()})
    assert NAME in world.controller.keys_for(FINETUNEJOB, there)
    await world.reconcile()
    assert world.made(JOB) == 1


@pytest.mark.parametrize("left", [{"phase": "Failed", "message": "line 37"}, {"phase": "Succeeded"}])
async def test_a_job_that_has_published_nothing_is_said(world: World, left: dict[str, Any]) -> None:
    world.change(FINETUNEJOB, NAME, spec=request(model=FROM)["spec"])
    world.put(FINETUNEJOB, {**earlier_body(), "status": left})
    await world.reconcile()
    assert (world.status["phase"], world.condition("Validated")["reason"]) == ("Pending", "JobFailed")
    assert f"has published nothing ({left.get('message', 'Succeeded')})" in world.status["message"]


async def test_a_job_whose_files_go_is_not_begun_with(world: World) -> None:
    world.change(FINETUNEJOB, NAME, spec=request(model=FROM)["spec"])
    going = {**request(deletionPolicy="Delete"), "metadata": earlier_body()["metadata"], "status": status()}
    going["metadata"]["deletionTimestamp"] = "2026-11-23T11:00:00Z"
    world.put(FINETUNEJOB, going)
    await world.reconcile()
    assert world.condition("Validated")["reason"] == "JobNotFound"
    assert "sft-v1 is being deleted" in world.status["message"]


async def test_what_it_began_with_outlives_the_earlier_job(world: World) -> None:
    world.change(FINETUNEJOB, NAME, spec=request(model=FROM)["spec"])
    world.put(FINETUNEJOB, {**earlier_body(), "status": status()})
    await world.reconcile()
    world.delete(FINETUNEJOB, EARLIER)
    await world.reconcile()
    assert world.status["resolved"]["contract"]["start"]["uri"] == ARTIFACTS["uri"]
    assert world.condition("Validated")["status"] == "True"


def earlier_body() -> dict[str, Any]:
    """Return the earlier job as the API server has it."""
    body = request()
    return {**body, "metadata": {**body["metadata"], "name": EARLIER.name, "uid": "the earlier one"}}
