"""What objective sft has of its own: examples packed into one sequence, and noise on the embeddings."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from transformers import BloomConfig, BloomForCausalLM
from trl.data_utils import pack_dataset

from lorikeet_api.contract import RunContract
from lorikeet_run.mixture import mix
from lorikeet_run.rows import Epoch, Rows
from lorikeet_run.tokens import IGNORED, Tokens
from lorikeet_trainer import device
from lorikeet_trainer.objectives.sft import examples
from lorikeet_trainer.state import MetricsFile
from lorikeet_trainer.upload import Uploader
from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab
from tests.trainer.test_resume import run_until

pytestmark = pytest.mark.trainer

MODEL, TRAIN = "s3://models/chatml", "s3://datasets/train.jsonl"
HELD_OUT = {"eval": {"uri": "s3://datasets/heldout.jsonl"}}
EXAMPLES = 60
EVERY_STEP = {"loggingSteps": 1, "learningRate": 1e-3}


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "chatml"), "chatml")
        yield made


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as a processor without bfloat16 units does."""
    monkeypatch.setattr(device, "_cpu_flags", set)


def metrics_of(lab: Lab, contract: RunContract) -> MetricsFile:
    assert lab.run(contract).exit_code == 0
    return MetricsFile.model_validate_json(lab.fetch(contract, "metrics.json"))


def trained(lab: Lab, **changes: Any) -> MetricsFile:
    return metrics_of(lab, lab.contract("lora", MODEL, TRAIN, **changes))


@pytest.mark.usefixtures("float32")
def test_packed_examples_see_themselves_alone(lab: Lab) -> None:
    """Both runs see every example once in each of their steps, so they have the same losses, if nothing is mixed up."""
    apart = trained(lab, training={**EVERY_STEP, "batchSize": EXAMPLES, "maxSteps": 2}).curve
    packed = trained(lab, dataset={"packing": True}, training={**EVERY_STEP, "batchSize": 64, "maxSteps": 2})
    assert packed.metrics.packed_sequences == EXAMPLES / 2
    assert [point.loss for point in packed.curve] == pytest.approx([point.loss for point in apart], rel=1e-4)
    assert [point.grad_norm for point in packed.curve] == pytest.approx([point.grad_norm for point in apart], rel=1e-3)


def test_a_batch_counts_packed_sequences(lab: Lab) -> None:
    found = trained(lab, dataset={"packing": True, **HELD_OUT}, training={"batchSize": 4, "epochs": 4}).metrics
    assert (found.train_examples, found.packed_sequences) == (EXAMPLES, EXAMPLES / 2)
    assert found.steps == 4 * math.ceil(EXAMPLES / 2 / 4)
    assert found.eval_loss is not None
    assert found.base_eval_loss is not None
    assert found.eval_loss < found.base_eval_loss / 2


def test_a_model_that_would_mix_packed_examples_is_refused(lab: Lab, tmp_path: Path) -> None:
    """Bloom counts distances over the whole sequence, whatever the positions say."""
    torch.manual_seed(0)
    made = tiny.tokenizer(tiny.CHATML)
    config = BloomConfig(vocab_size=len(made), hidden_size=64, n_layer=2, n_head=4)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    uri = lab.put_folder(tmp_path, "bloom")
    method = {"lora": {"targetModules": ["query_key_value"]}}
    apart, packed = (
        lab.run(lab.contract(method, uri, TRAIN, dataset={"packing": on}, training={"maxSteps": 1}))
        for on in (False, True)
    )
    assert apart.exit_code == 0
    assert packed.record is not None
    assert packed.record.reason == "MethodNotApplicable"
    assert packed.record.message.endswith("packed into one sequence: remove dataset.packing")


def tokens(number: int) -> Tokens:
    ids = np.arange(1 + 7 * number % 90, dtype=np.int32) + number
    return Tokens(ids, np.where(np.arange(len(ids)) < len(ids) // 2, IGNORED, ids).astype(np.int32))


def test_examples_are_trained_on_from_the_memory_where_they_lie_and_packed_into_a_file(tmp_path: Path) -> None:
    sources, path = [Rows[Tokens](), Rows[Tokens]()], tmp_path / "scratch" / "packed.arrow"
    for number in range(3000):
        sources[number % 3 == 0].append(tokens(number))
    epoch = Epoch.of(sources, mix([2000, 1000], [1.0, 1.0], seed=1))
    listed = Dataset.from_dict(
        {"input_ids": [row.input_ids.tolist() for row in epoch], "labels": [row.labels.tolist() for row in epoch]}
    )
    before = pa.total_allocated_bytes()
    alone = examples(epoch, None, path)
    packed = examples(epoch, 128, path)
    assert pa.total_allocated_bytes() - before < sum(rows.input_ids.nbytes for rows in sources)
    assert [file["filename"] for file in packed.cache_files] == [str(path)]
    assert alone.to_list() == listed.to_list()
    assert packed.to_list() == pack_dataset(listed, 128, "bfd").to_list()


@pytest.mark.usefixtures("float32")
def test_noise_is_on_the_embeddings_while_it_trains_and_never_while_it_is_judged(lab: Lab) -> None:
    without, hardly, strong = (
        trained(lab, objective={"sft": sft}, dataset=HELD_OUT, training={**EVERY_STEP, "maxSteps": 1})
        for sft in ({}, {"neftuneAlpha": 1e-6}, {"neftuneAlpha": 500})
    )
    assert hardly.curve[0].loss == pytest.approx(without.curve[0].loss, rel=1e-5)
    assert strong.curve[0].loss != pytest.approx(without.curve[0].loss, rel=1e-3)
    assert strong.metrics.base_eval_loss == without.metrics.base_eval_loss
    assert strong.metrics.eval_loss == pytest.approx(without.metrics.eval_loss, rel=0.1)


@pytest.mark.parametrize(
    "more", [{"dataset": {"packing": True}}, {"objective": {"sft": {"neftuneAlpha": 5}}}], ids=["packing", "noise"]
)
def test_a_resumed_run_ends_as_if_nothing_had_been(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    whole, cut = (lab.contract("lora", MODEL, TRAIN, training={**EVERY_STEP, "maxSteps": 3}, **more) for _ in range(2))
    assert lab.run(whole).exit_code == 0
    assert run_until(lab, cut, 2, monkeypatch).exit_code == 75
    Uploader(lab.checkpoints(cut), lab.layout(cut), keep=2).run(lambda seconds: True)
    assert lab.run(cut).exit_code == 0
    assert lab.manifest(cut).metrics.resumed_from_step == 2
    weights = [
        {file.path: file.sha256 for file in lab.manifest(each).files if file.path.endswith(".safetensors")}
        for each in (whole, cut)
    ]
    assert weights[0] == weights[1] != {}
