"""A full fine-tune on several ranks, each of which holds a part of the model."""

import json
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load
from transformers import PhiConfig, PhiForCausalLM

from lorikeet_api.contract import RunContract
from lorikeet_run.errors import RunError
from lorikeet_run.log import parse
from lorikeet_trainer import loop
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, Started, open_lab
from tests.trainer.test_resume import steps_stored

pytestmark = pytest.mark.trainer

TRAINING = {
    "epochs": 99.0,
    "maxSteps": 40,
    "microBatchSize": 2,
    "precision": "fp32",
    "loggingSteps": 1,
    "evalSteps": 20,
    "checkpoints": {"afterSuccess": "keepBest"},
}
"""Several micro batches a step, a rank that is a row short in each evaluation, and best weights to keep, in float32."""


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model with random weights, some of which go by two names, and the data."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small", tie_word_embeddings=True), "small")
        made.put_rows("odd.jsonl", tiny.rows()[1][:5])
        chosen, held_out = tiny.preferences()
        made.put_rows("pairs.jsonl", chosen)
        made.put_rows("odd-pairs.jsonl", held_out[:5])
        yield made


def contract(lab: Lab, **changes: Any) -> RunContract:
    held_out = {"eval": {"uri": "s3://datasets/odd.jsonl"}}
    train = "s3://datasets/train.jsonl"
    return lab.contract("full", "s3://models/small", train, training=TRAINING, dataset=held_out, **changes)


def test_sharded_weights_are_those_of_one_rank_also_if_the_run_was_stopped_on_the_way(lab: Lab) -> None:
    """At the same effective batch."""
    sharded, alone = contract(lab, gpus=2, allow_cpu=True), contract(lab)
    first = lab.start(sharded)
    model = parse(first.await_line("event=model"))
    assert model["sharded"] == "True"
    assert int(model["held_parameters"]) == pytest.approx(int(model["parameters"]) / 2, rel=0.01)
    step = stopped(lab, sharded, first)
    code, record, log = lab.start(sharded).end()
    assert (code, record["metrics"]["resumedFromStep"]) == (0, step), log

    assert lab.run(alone).exit_code == 0
    assert lab.published(sharded) == lab.published(alone)
    for name in ("config.json", "generation_config.json"):
        assert lab.fetch(sharded, f"model/{name}") == lab.fetch(alone, f"model/{name}")
    # The best ones as they were trained, the last ones as they are published.
    for name, dtype, tolerance in (("checkpoints/best", torch.float32, 1e-4), ("model", torch.bfloat16, 5e-3)):
        ours, theirs = (load(lab.fetch(each, f"{name}/model.safetensors")) for each in (sharded, alone))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
        assert {tensor.dtype for tensor in ours.values()} == {dtype}
    assert losses(lab, sharded) == pytest.approx(losses(lab, alone), abs=1e-3)


def test_a_run_of_two_ranks_goes_on_with_one(lab: Lab) -> None:
    begun, alone = contract(lab, gpus=2, allow_cpu=True), contract(lab)
    step = stopped(lab, begun, lab.start(begun))
    result = lab.run(begun.model_copy(update={"gpus": 0}))
    assert result.record is not None
    assert result.record.metrics is not None
    assert (result.exit_code, result.record.metrics.resumed_from_step) == (0, step)
    assert lab.run(alone).exit_code == 0
    ours, theirs = (load(lab.fetch(each, "model/model.safetensors")) for each in (begun, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)


def test_weights_of_an_output_that_is_put_together_by_itself_are_those_of_one_rank(lab: Lab) -> None:
    """Phi's last norm is not called as others' are, so that its output layer is not put together with it."""
    tokenizer, folder = tiny.tokenizer(tiny.CHATML), lab.root / "phi"
    torch.manual_seed(0)
    PhiForCausalLM(
        PhiConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
            num_attention_heads=4, eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    model, train = lab.put_folder(folder, "phi"), "s3://datasets/train.jsonl"
    training = {"maxSteps": 3, "precision": "fp32", "microBatchSize": 4}
    sharded, alone = (
        lab.contract("full", model, train, training=training, **ranks)
        for ranks in ({"gpus": 2, "allow_cpu": True}, {"gpus": 0})
    )
    code, _, log = lab.start(sharded).end()
    assert (code, "sharded=True" in log) == (0, True), log
    assert lab.run(alone).exit_code == 0
    ours, theirs = (load(lab.fetch(each, "model/model.safetensors")) for each in (sharded, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("objective", ["orpo", "reward"])
def test_pairs_train_the_same_weights_on_two_ranks_as_on_one(lab: Lab, objective: str) -> None:
    """Each micro batch is of the same pairs, whichever rank it is of."""
    pairs, held_out = ({"uri": f"s3://datasets/{name}.jsonl"} for name in ("pairs", "odd-pairs"))
    sharded, alone = (
        lab.contract(
            "full", "s3://models/small", [pairs], dataset={"eval": held_out}, objective={objective: {}},
            training={"maxSteps": 3, "precision": "fp32", "microBatchSize": 2, "loggingSteps": 1}, **ranks,
        )
        for ranks in ({"gpus": 2, "allow_cpu": True}, {"gpus": 0})
    )  # fmt: skip
    code, _, log = lab.start(sharded).end()
    assert (code, "sharded=True" in log) == (0, True), log
    assert lab.run(alone).exit_code == 0
    ours, theirs = (load(lab.fetch(each, "model/model.safetensors")) for each in (sharded, alone))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    # Held-out rows are looked at with the weights as they are published, in 16 bits.
    assert losses(lab, sharded) == pytest.approx(losses(lab, alone), abs=5e-3)
    margins = [lab.manifest(each).metrics.eval_margin for each in (sharded, alone)]
    assert margins[0] == pytest.approx(margins[1], abs=5e-3)


def test_no_rank_trains_weights_that_were_to_be_shared_out_and_are_not() -> None:
    model = torch.nn.Linear(2, 3)
    trainer = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2), args=SimpleNamespace(n_gpu=0))
    trainable = SimpleNamespace(model=model, dtype=torch.float32, trained=9, is_sharded=True)
    with pytest.raises(RunError, match="2 of 2 weights would be held whole by every rank"):
        loop.assert_sound(cast(Any, trainer), cast(Any, trainable), 2)


def stopped(lab: Lab, contract: RunContract, run: Started) -> int:
    """Stop a run in or after its second step; return the step of the one checkpoint that it leaves."""
    run.await_line("event=step step=2 ")
    run.process.send_signal(signal.SIGTERM)
    code, record, log = run.end()
    assert (code, record["reason"]) == (75, "Preempted"), log
    (step,) = steps_stored(lab, contract)
    return step


def losses(lab: Lab, contract: RunContract) -> dict[str, float]:
    """Return training and evaluation losses of each step, with the norms of their gradients."""
    points = json.loads(lab.fetch(contract, "metrics.json"))["curve"]
    kinds = ("loss", "evalLoss", "gradNorm")
    return {f"{kind} {point['step']}": point[kind] for point in points for kind in kinds if kind in point}
