"""What torch raises where memory is used up, and how that is told."""

import pytest
import torch

from lorikeet_api.conditions import ADVICE_OUT_OF_MEMORY
from lorikeet_run.errors import explain

pytestmark = pytest.mark.trainer

TRIED = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.14 GiB"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(TRIED),
        # Its class alone says so: the words are the allocator's, and change with its version.
        torch.OutOfMemoryError("Allocation on device"),
        # Past the allocator, as by a kernel or a context: another class, so that the words count.
        torch.AcceleratorError("CUDA error: out of memory"),
        # As a library raises it anew, and as cuBLAS says it, which allocates by itself.
        RuntimeError(f"layer 3: {TRIED}"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=repr,
)
def test_a_gpu_that_is_full_is_not_tried_again(error: Exception) -> None:
    found = explain(error)
    assert (found.reason, found.exit_code, found.record().retryable) == ("OutOfMemory", 66, False)
    assert found.message == f"the GPU ran out of memory: {ADVICE_OUT_OF_MEMORY}"


def test_so_is_a_process_that_is() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    found = explain(caught.value)
    assert (found.reason, found.exit_code, found.record().retryable) == ("OutOfMemory", 66, False)
    assert found.message == f"the process ran out of memory: {ADVICE_OUT_OF_MEMORY}"


def test_what_only_sounds_like_it_is_a_fault_and_tried_again() -> None:
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    found = explain(error)
    assert (found.reason, found.exit_code, found.record().retryable) == ("InternalError", 70, True)
    assert str(error) in found.message
