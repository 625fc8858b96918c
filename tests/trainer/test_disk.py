"""A scratch volume that is full, a real one: libraries say it each in its own words."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.s3 import S3Server
from tests.trainer import tiny
from tests.trainer.lab import Lab, open_lab

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a volume of a certain size"),
]

MODEL, TRAIN = "s3://models/chatml", "s3://datasets/train.jsonl"


@pytest.fixture(scope="module")
def lab(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(s3_server, tmp_path_factory.mktemp("lab")) as made:
        made.put_folder(tiny.write_model(made.root / "chatml"), "chatml")
        yield made


@contextmanager
def volume(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("room", "reason", "exit_code", "word"),
    [
        (0.7, "StorageRefused", 64, "no space left for s3://models/chatml/model.safetensors"),
        (1.9, "OutOfDisk", 66, "Error while serializing"),
        (3.2, "OutOfDisk", 66, "unexpected pos"),
    ],
    ids=["while it fetches", "at a checkpoint's weights", "at a checkpoint's optimiser"],
)
def test_a_disk_that_fills_up_ends_the_run_with_what_to_raise(
    lab: Lab, room: float, reason: str, exit_code: int, word: str
) -> None:
    """The base takes as much as one model; of a full fine-tune, a checkpoint's weights do, and its optimiser twice."""
    contract = lab.contract("full", MODEL, TRAIN, training={"maxSteps": 2, "checkpoints": {"everySteps": 1}})
    kib = int(room * (lab.root / "chatml" / "model.safetensors").stat().st_size / 1024)
    with volume(lab.layout(contract).model.parent, kib):
        result = lab.run(contract)
    assert result.record is not None
    assert (result.record.reason, result.exit_code, result.record.retryable) == (reason, exit_code, False)
    assert word in result.record.message
    assert "compute.scratch" in result.record.message
    assert "manifest.json" not in lab.published(contract)
