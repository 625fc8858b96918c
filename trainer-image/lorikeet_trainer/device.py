"""What a run computes on, and in which precision."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from lorikeet_api.contract import RunContract
from lorikeet_api.training import Precision
from lorikeet_run.errors import RunError

_DTYPES: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_BF16_FLAGS: Final = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Compute:
    """One rank's place and precision."""

    device: torch.device
    dtype: torch.dtype
    """What the model computes in, and what is frozen of it is held in."""
    rank: int
    ranks: int

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> Precision:
        """Its type as requests name it."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)

    @property
    def autocast(self) -> torch.dtype | None:
        """The type in which it computes what lies in another one; None where that is float32."""
        return None if self.dtype == torch.float32 else self.dtype

    @property
    def name(self) -> str:
        """The GPU's name, or cpu."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else "cpu"

    def held_memory(self) -> int:
        """Return the bytes that this rank holds now: of the GPU where there is one, else of the process."""
        if self.on_gpu:
            return int(torch.cuda.memory_reserved(self.device))
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def join(compute: Compute) -> None:
    """Bring the ranks together, before a library does it in the midst of something else."""
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if compute.on_gpu else "gloo", device_id=compute.device if compute.on_gpu else None
        )


def choose(contract: RunContract) -> Compute:
    """Return what this rank computes on, and in which precision.

    Raises RunError: NoGpu where GPUs were asked for and too few are seen, InvalidContract for a precision that the
    hardware does not have.
    """
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
    return Compute(device, _dtype(contract.training.precision, device, has_bf16=has_bf16), rank, ranks)


def _dtype(asked: Precision | None, device: torch.device, *, has_bf16: bool) -> torch.dtype:
    """Return what to compute in: bfloat16 where the hardware has it, unless something else is asked for.

    float16 is chosen for nobody: its losses must be scaled, and can overflow all the same.
    """
    on_gpu = device.type == "cuda"
    if asked is None:
        return torch.bfloat16 if has_bf16 else torch.float32
    if asked == "fp16" and not on_gpu:
        raise RunError(
            "InvalidContract",
            "training.precision fp16: it needs a GPU, and the run has none; choose bf16 or fp32, or leave it out",
        )
    if asked == "bf16" and on_gpu and not has_bf16:
        name = torch.cuda.get_device_name(device)
        raise RunError(
            "InvalidContract", f"training.precision bf16: {name} has no bfloat16; choose fp16 or fp32, or leave it out"
        )
    return _DTYPES[asked]


def _cpu_flags() -> set[str]:
    """Return the processor's features: without bfloat16 units it is slower than float32."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    features = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return set(next(features, []))
