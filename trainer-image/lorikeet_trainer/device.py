"""What a run computes on, and in which precision."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from lorikeet_api.contract import RunContract
from lorikeet_run.errors import RunError

_BF16_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Compute:
    """One rank's place and precision."""

    device: torch.device
    dtype: torch.dtype
    """bfloat16 where the hardware has it, else float32: T4 and V100 have float16 alone, which needs loss scaling."""
    rank: int
    ranks: int

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """The GPU's name, or cpu."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"

    def held_memory(self) -> int:
        """Return the bytes that this rank holds now: of the GPU where there is one, else of the process."""
        if self.on_gpu:
            return int(torch.cuda.memory_reserved(self.device))
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def choose(contract: RunContract) -> Compute:
    """Return what this rank computes on. Raises RunError (NoGpu) where GPUs were asked for and too few are seen."""
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    seen = torch.cuda.device_count() if contract.gpus > 0 else 0
    if contract.gpus > 0 and seen >= ranks:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif contract.gpus == 0 or (contract.allow_cpu and seen == 0):
        device = torch.device("cpu")
        has_bf16 = bool(_cpu_flags() & _BF16_FLAGS)
    else:
        raise RunError(
            "NoGpu",
            f"the pod asked for {contract.gpus} GPUs and sees {seen}: check the node's driver and device plugin and the"
            " image's CUDA version; where none is seen, a TuningProfile with allowCpuFallback trains on the CPU",
        )
    return Compute(device, torch.bfloat16 if has_bf16 else torch.float32, rank, ranks)


def _cpu_flags() -> set[str]:
    """Return the processor's features: without bfloat16 units it is slower than float32."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    features = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return set(next(features, []))
