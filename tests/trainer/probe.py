"""What a trained model says to one prompt: in the trainer's memory, and as a stranger reads it from the store."""

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from lorikeet_api.contract import Metrics, RunContract, RunRecord
from lorikeet_trainer import train
from lorikeet_trainer.state import StageResult
from tests.trainer.lab import Lab

PROBE = torch.tensor([[5, 60, 61, 62, 7, 70, 71]])


@dataclass
class Run:
    """One run with what it left."""

    contract: RunContract
    result: StageResult
    logits: torch.Tensor
    """Of the trained model on PROBE, as it was in the trainer's memory."""

    @property
    def record(self) -> RunRecord:
        assert self.result.record is not None
        assert self.result.exit_code == 0, self.result.record.message
        return self.result.record

    @property
    def metrics(self) -> Metrics:
        assert self.record.metrics is not None
        return self.record.metrics


def run_and_probe(lab: Lab, contract: RunContract) -> Run:
    found: list[torch.Tensor] = []
    save = train.save

    def probe(session: Any, trainable: Any, tokenizer: Any) -> None:
        trainable.model.eval()
        with torch.inference_mode():
            found.append(trainable.model(input_ids=PROBE.to(trainable.model.device)).logits.float().cpu())
        save(session, trainable, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save", probe)
        result = lab.run(contract)
    assert result.record is not None
    return Run(contract, result, found[0] if found else torch.empty(0))


def read_back(
    lab: Lab, contract: RunContract, base: Path, folder: Path, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> torch.Tensor:
    """Return what another process computes on PROBE with what a run has published and the base in its folder."""
    for name in lab.published(contract):
        path = folder / "published" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lab.fetch(contract, name))
    out = folder / "logits.pt"
    _stranger().read(str(base), str(folder / "published"), contract.method.name, str(out), dtype, PROBE.tolist())
    read: torch.Tensor = torch.load(out)
    return read


@cache
def _stranger() -> "_Stranger":
    return _Stranger()


class _Stranger:
    """The process that reads back: it ends with this one, whose end it reads from its stdin."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("stranger.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self, *arguments: object) -> None:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        print(json.dumps(arguments), file=asked, flush=True)
        assert answers.readline() == "read\n", "it has told why on stderr"
