"""The best weights by the loss on the held-out examples: kept, published, and when a run ends for want of better."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load

from lorikeet_api.contract import Metrics, RunContract
from lorikeet_api.training import EarlyStopping
from lorikeet_trainer import publish
from lorikeet_trainer.progress import Reporter
from lorikeet_trainer.selection import stalled
from lorikeet_trainer.stop import STOP
from lorikeet_trainer.upload import Uploader
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import ADAPTER, Lab, open_lab
from tests.trainer.test_resume import outcome, run_until, steps_stored

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/small", "s3://datasets/train.jsonl"
METHODS: dict[str, Any] = {"lora": {"lora": {**ADAPTER, "dropout": 0.05}}, "full": "full"}
# Answers by chance: a model that has learnt what the right ones are is worse on them.
HELD_OUT = {"eval": {"uri": "s3://datasets/shuffled.jsonl"}}
TOO_FAST: dict[str, dict[str, Any]] = {
    "lora": {"learningRate": 3e-2, "earlyStopping": {"patience": 2}},
    "full": {"learningRate": 2e-2, "earlyStopping": {"patience": 2}, "optimizer": "adamw8bit"},
}
PLANNED = 60
STEPS: dict[str, Any] = {
    "epochs": 10,
    "maxSteps": PLANNED,
    "evalSteps": 2,
    "microBatchSize": 4,
    "loggingSteps": 3,
    "scheduler": "constant",
    # Processors compute 16 bits each in their own way, and on some the loss would go on falling.
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A model with random weights."""
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "small"), "small")
        made.put_rows("shuffled.jsonl", tiny.rows(shuffled=True)[0][:20])
        yield made


@pytest.fixture
def stop() -> Iterator[None]:
    yield
    STOP.requested = False


def asked(lab: Lab, method: str, **training: Any) -> RunContract:
    chosen = {**STEPS, **TOO_FAST[method], **training}
    return lab.contract(METHODS[method], MODEL, TRAIN, dataset=HELD_OUT, training=chosen)


def run(lab: Lab, contract: RunContract) -> Metrics:
    result = lab.run(contract)
    assert result.exit_code == 0, result.record
    assert result.record is not None
    assert result.record.metrics is not None
    return result.record.metrics


def evaluations(lab: Lab, contract: RunContract) -> dict[int, float]:
    """Return the losses on the held-out examples by their steps."""
    curve = json.loads(lab.fetch(contract, "metrics.json"))["curve"]
    return {point["step"]: point["evalLoss"] for point in curve if "evalLoss" in point}


@pytest.fixture(scope="module", params=list(METHODS))
def whole(request: pytest.FixtureRequest, lab: Lab) -> tuple[str, RunContract, Metrics]:
    """A run that ends early, and that nobody has interrupted."""
    contract = asked(lab, request.param)
    return request.param, contract, run(lab, contract)


def test_a_run_ends_once_the_held_out_loss_falls_no_longer(lab: Lab, whole: tuple[str, RunContract, Metrics]) -> None:
    method, contract, metrics = whole
    losses = evaluations(lab, contract)
    assert metrics.best_step is not None
    assert metrics.eval_loss is not None
    assert metrics.steps == metrics.best_step + 2 * 2 < PLANNED == metrics.planned_steps
    assert list(losses) == list(range(2, metrics.steps + 1, 2))
    assert min(losses, key=lambda step: losses[step]) == metrics.best_step
    assert metrics.best_eval_loss == pytest.approx(losses[metrics.best_step], rel=1e-5)
    # A full fine-tune is published in the type of its base.
    assert metrics.eval_loss == pytest.approx(metrics.best_eval_loss, rel=1e-5 if method == "lora" else 1e-2)
    assert metrics.eval_loss < losses[metrics.steps]
    told = f"ended early, after {metrics.steps} of {PLANNED} steps: the loss on the held-out examples, the lowest"
    assert told in publish._end_of(metrics)


@pytest.mark.parametrize("late", [1, 0], ids=["with the best behind it", "in the step that would have been the last"])
def test_a_stopped_run_ends_where_it_would_have(
    lab: Lab, whole: tuple[str, RunContract, Metrics], late: int, monkeypatch: pytest.MonkeyPatch, stop: None
) -> None:
    method, contract, before = whole
    if (method == "full") != (late == 1):
        pytest.skip("one of the two is enough for each")
    stopped = asked(lab, method)
    assert before.steps is not None
    where = before.steps - late
    assert run_until(lab, stopped, where, monkeypatch).exit_code == 75
    Uploader(lab.checkpoints(stopped), lab.layout(stopped), keep=2).run(lambda seconds: True)
    assert steps_stored(lab, stopped) == [where]
    shutil.rmtree(lab.layout(stopped).best)
    after = run(lab, stopped)
    assert after.resumed_from_step == where
    assert outcome(lab, stopped) == outcome(lab, contract)
    names = ("steps", "planned_steps", "best_step", "best_eval_loss", "eval_loss", "train_loss")
    assert {name: getattr(after, name) for name in names} == {name: getattr(before, name) for name in names}


def test_the_last_weights_may_be_published_and_the_best_ones_kept_beside(
    lab: Lab, whole: tuple[str, RunContract, Metrics], monkeypatch: pytest.MonkeyPatch, stop: None
) -> None:
    method, best, metrics = whole
    if method != "lora":
        pytest.skip("one method is enough")
    last = asked(lab, method, publish="last", checkpoints={"afterSuccess": "keepBest"})
    run_until(lab, last, 3, monkeypatch)
    Uploader(lab.checkpoints(last), lab.layout(last), keep=2).run(lambda seconds: True)
    told: list[tuple[int, int, float | None]] = []
    monkeypatch.setattr(Reporter, "training", lambda _, step, steps, left, __: told.append((step, steps, left)))
    found = run(lab, last)
    assert (found.steps, found.best_step) == (metrics.steps, metrics.best_step)
    assert found.eval_loss == pytest.approx(evaluations(lab, last)[found.steps or 0], rel=1e-5)
    kept, own, theirs = (
        load(lab.fetch(contract, f"{folder}/adapter_model.safetensors"))
        for contract, folder in ((last, "checkpoints/best"), (last, "adapter"), (best, "adapter"))
    )
    assert all(torch.equal(kept[name], theirs[name]) for name in theirs)
    assert not all(torch.equal(own[name], theirs[name]) for name in theirs)
    left = {name for name in lab.published(last) if name.startswith("checkpoints/")}
    assert left == {"checkpoints/best/adapter_config.json", "checkpoints/best/adapter_model.safetensors"}
    assert told[-1] == (found.steps, found.steps, 0.0), "no more are made"


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "ends"),
    [
        ([], 1, 0.0, False),
        ([3.0], 1, 0.0, False),
        ([3.0, 3.0], 1, 0.0, True),
        ([3.0, 4.0, 2.0, 5.0], 2, 0.0, False),
        ([3.0, 4.0, 5.0], 2, 0.0, True),
        ([3.0, 2.6, 2.3], 2, 0.5, False),
        ([3.0, 2.9, 2.8], 2, 0.5, True),
    ],
    ids=str,
)
def test_patience_is_counted_from_the_last_loss_that_was_lower_enough(
    losses: list[float], patience: int, min_delta: float, *, ends: bool
) -> None:
    assert stalled(losses, EarlyStopping(patience=patience, min_delta=min_delta)) == ends
