"""A run that goes on from what an earlier one has published: it begins where that one ended, on the same base."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from lorikeet_agent import main
from lorikeet_api.contract import Artifacts, RunContract, RunRecord, Start
from lorikeet_trainer.stage import run_stage
from lorikeet_trainer.upload import Uploader
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, Lab
from tests.trainer.probe import read_back, run_and_probe
from tests.trainer.test_resume import outcome, run_until, steps_stored, stop

__all__ = ["stop"]

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/pretrained", "s3://datasets/train.jsonl"
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
CONFIG, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Chain:
    """Two methods, of which the second one trains further what the first one has published."""

    first: dict[str, Any]
    second: dict[str, Any]
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """In which it is computed."""
    tolerance: float = 0.0
    """By how much what is published may differ from what was trained (logits)."""


CHAINS = {
    "lora": Chain({"lora": ADAPTER}, {"lora": {**ADAPTER, "dropout": 0.1, "loraPlusRatio": 2.0}}),
    "qlora": Chain({"qlora": ADAPTER}, {"qlora": ADAPTER}),
    "variants": Chain(
        {"lora": {**ADAPTER, "dora": True, "rsLora": True, "modulesToSave": ["norm"]}},
        {"lora": {**ADAPTER, "dora": True, "rsLora": True, "modulesToSave": ["norm"]}},
        tolerance=0.3,
    ),
    "pissa": Chain(
        {"lora": {**ADAPTER, "init": "pissa"}},
        {"lora": {**ADAPTER, "rank": 2 * ADAPTER["rank"], "alpha": 2 * ADAPTER["alpha"]}},
        dtype="float32",
        tolerance=1e-3,
    ),
}


def published(record: RunRecord | None) -> Artifacts:
    assert record is not None
    assert record.artifacts is not None, record.message
    return record.artifacts


def start_of(record: RunRecord | None) -> Start:
    """Return what a run begins with that goes on from a finished one."""
    made = published(record)
    return Start(uri=made.uri, sha256=made.sha256)


@pytest.fixture(scope="module")
def earlier(lab: Lab) -> RunContract:
    """A run that has published an adapter."""
    contract = lab.contract("lora", MODEL, TRAIN, training={"maxSteps": 2})
    assert lab.run(contract).exit_code == 0
    return contract


@pytest.fixture
def start(lab: Lab, earlier: RunContract) -> Start:
    return start_of(lab.run(earlier).record)  # adopted


@pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))
def test_it_begins_where_the_earlier_one_ended_and_is_published_for_the_same_base(
    lab: Lab, chain: Chain, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if chain.dtype == "float32":
        request.getfixturevalue("float32")
    rate = 1e-3 if chain.dtype == "float32" else 5e-3

    def contract(method: dict[str, Any], rate: float, **more: Any) -> RunContract:
        training = {"maxSteps": 16, "learningRate": rate}
        return lab.contract(method, MODEL, TRAIN, training=training, dataset=HELD_OUT, **more)

    first = run_and_probe(lab, contract(chain.first, rate))
    # Gently, since the optimiser begins anew.
    second = run_and_probe(lab, contract(chain.second, rate / 5, start=start_of(first.record)))
    ended, began = first.metrics.eval_loss, second.metrics.base_eval_loss
    assert ended is not None
    assert began is not None
    assert began == pytest.approx(ended, abs=1e-3)
    assert second.metrics.eval_loss is not None
    assert second.metrics.eval_loss < began
    before, after = (json.loads(lab.fetch(one.contract, CONFIG)) for one in (first, second))
    assert {**after, "lora_dropout": 0} == {**before, "lora_dropout": 0}
    assert lab.manifest(second.contract).rank == lab.manifest(first.contract).rank == after["r"]
    assert {name for name in lab.published(second.contract) if name.startswith("adapter/")} == {
        name for name in lab.published(first.contract) if name.startswith("adapter/")
    }
    read = read_back(lab, second.contract, lab.root / "pretrained", tmp_path, chain.dtype)
    torch.testing.assert_close(read, second.logits, rtol=0, atol=chain.tolerance)


def test_stopped_it_goes_on_from_its_own_checkpoint(
    lab: Lab, start: Start, monkeypatch: pytest.MonkeyPatch, stop: None
) -> None:
    def contract() -> RunContract:
        method = {"lora": {**ADAPTER, "dropout": 0.05}}
        return lab.contract(method, MODEL, TRAIN, start=start, training={"maxSteps": 8, "loggingSteps": 3})

    whole, stopped = contract(), contract()
    assert lab.run(whole).exit_code == 0
    assert run_until(lab, stopped, 5, monkeypatch).exit_code == 75
    Uploader(lab.checkpoints(stopped), lab.layout(stopped), keep=2).run(lambda seconds: True)
    assert steps_stored(lab, stopped) == [5]
    result = lab.run(stopped)
    assert result.record is not None
    assert result.record.metrics is not None
    assert result.record.metrics.resumed_from_step == 5
    assert outcome(lab, stopped) == outcome(lab, whole)


def test_a_checkpoint_of_another_start_is_none_of_this_run(lab: Lab, start: Start) -> None:
    """Two runs of one id cannot begin differently, but for a store that somebody changed."""
    contract = lab.contract("lora", MODEL, TRAIN, start=start)
    assert run_stage("prepare", lab.write(contract), lab.layout(contract)).exit_code == 0
    with_start = lab.checkpoints(contract)._basis
    bare = contract.model_copy(update={"start": None})
    assert run_stage("prepare", lab.write(bare), lab.layout(bare)).exit_code == 64, "another run's folder"
    other = lab.contract("lora", MODEL, TRAIN)
    assert run_stage("prepare", lab.write(other), lab.layout(other)).exit_code == 0
    assert lab.checkpoints(other)._basis != with_start


def said(lab: Lab, contract: RunContract, tmp_path: Path) -> list[tuple[int, RunRecord]]:
    """Return what the agent says before the run, and the trainer before it loads torch."""
    log = tmp_path / "termination"
    code = main.run("preflight", lab.write(contract), log)
    result = run_stage("prepare", lab.write(contract), lab.layout(contract))
    told = [(code, RunRecord.model_validate_json(log.read_text()))]
    return [*told, *([(result.exit_code, result.record)] if result.record is not None else [])]


def test_a_sound_start_is_taken_by_both(lab: Lab, start: Start, tmp_path: Path) -> None:
    ((code, record),) = said(lab, lab.contract("lora", MODEL, TRAIN, start=start), tmp_path)
    assert (code, record.reason) == (0, "Checked"), record.message


def test_what_is_wrong_with_the_start_is_said_before_anything_is_trained(
    lab: Lab, start: Start, tmp_path: Path
) -> None:
    other = start.model_copy(update={"sha256": "0" * 64})
    gone = start.model_copy(update={"uri": "s3://out/nothing"})
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"start": other}, "SourceChanged", "pinned is 000"),
        ({"start": gone}, "ModelNotFound", "s3://out/nothing/manifest.json does not exist"),
        ({"start": start, "method": {"lora": {**ADAPTER, "rank": 4}}}, "ModelInvalid", "r 8 instead of 4"),
        (
            {"start": start, "method": {"lora": {**ADAPTER, "modulesToSave": ["norm"]}}},
            "ModelInvalid",
            "modules_to_save [] instead of ['norm']",
        ),
    ]
    for changes, reason, words in wrong:
        contract = lab.contract(changes.pop("method", "lora"), MODEL, TRAIN, **changes)
        answers = said(lab, contract, tmp_path)
        assert len(answers) == 2
        for code, record in answers:
            assert (record.reason, code in (64, 65), record.retryable) == (reason, True, False), record
            assert words in record.message


def test_an_adapter_of_another_base_is_refused(lab: Lab, start: Start, tmp_path: Path) -> None:
    small = lab.put_folder(tiny.write_model(lab.root / "small", hidden_size=32), "smaller")
    for code, record in said(lab, lab.contract("lora", small, TRAIN, start=start), tmp_path):
        assert (code, record.reason) == (65, "SourceChanged")
        assert f"was trained on {MODEL}, and {small} has other weights" in record.message
    alike = lab.put_folder(tiny.write_model(lab.root / "alike"), "alike")  # of the same size
    (_, before), (code, record) = said(lab, lab.contract("lora", alike, TRAIN, start=start), tmp_path)
    assert (before.reason, code, record.reason) == ("Checked", 65, "SourceChanged")


def test_weights_that_are_not_what_the_manifest_says_are_refused(lab: Lab, earlier: RunContract) -> None:
    again = earlier.model_copy(update={"output_uri": "s3://out/damaged"})
    start = start_of(lab.run(again).record)
    key = f"damaged/{again.run_id}/{WEIGHTS}"
    lab.server.put("out", key, bytes(len(lab.fetch(again, WEIGHTS))))
    contract = lab.contract("lora", MODEL, TRAIN, start=start)
    result = run_stage("prepare", lab.write(contract), lab.layout(contract))
    assert result.record is not None
    assert (result.exit_code, result.record.reason) == (65, "SourceChanged")
    assert key in result.record.message


def test_an_adapter_whose_layers_are_not_those_of_the_method_is_refused(lab: Lab, start: Start) -> None:
    """All linear layers of the base are named by the base alone, so that its configuration tells nothing."""
    attention = {"lora": {**ADAPTER, "targetModules": ["q_proj", "v_proj"]}}
    first = lab.contract(attention, MODEL, TRAIN, training={"maxSteps": 1})
    begun = start_of(lab.run(first).record)
    everywhere = {"lora": {**ADAPTER, "targetModules": ["all-linear"]}}
    record = lab.run(lab.contract(everywhere, MODEL, TRAIN, start=begun, training={"maxSteps": 1})).record
    assert record is not None
    assert record.reason == "ModelInvalid"
    assert "has other weights than this job trains" in record.message
