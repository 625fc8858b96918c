"""What a run computes on: what it asked for, or the CPU where that is allowed and no GPU is seen at all."""

import pytest
import torch

from lorikeet_api.contract import StorageAccess
from lorikeet_run.errors import RunError
from lorikeet_trainer.device import choose
from tests import runs

pytestmark = pytest.mark.trainer


def test_fewer_gpus_than_were_asked_for_are_a_fault_also_where_the_cpu_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    contract = runs.contract("s3://out/x", StorageAccess(), gpus=2, allow_cpu=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RunError, match="asked for 2 GPUs and sees 1") as caught:
        choose(contract)
    assert caught.value.reason == "NoGpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose(contract).device == torch.device("cpu")
