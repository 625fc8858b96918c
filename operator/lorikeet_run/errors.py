"""The one exception by which a run ends on purpose, and how every other failure is told."""

import traceback
from typing import Final

from lorikeet_api.conditions import ADVICE_OUT_OF_MEMORY, TrainerReason
from lorikeet_api.contract import (
    EXIT_BAD_DATA,
    EXIT_BAD_REQUEST,
    EXIT_DOES_NOT_FIT,
    EXIT_INTERNAL,
    EXIT_PREEMPTED,
    Metrics,
    RunRecord,
)
from lorikeet_api.signs import SIGN_NAMES, Sign
from lorikeet_storage.errors import StorageError

EXIT_CODES: Final[dict[TrainerReason, int]] = {
    "InvalidContract": EXIT_BAD_REQUEST,
    "ModelNotFound": EXIT_BAD_REQUEST,
    "ModelInvalid": EXIT_BAD_REQUEST,
    "DataNotFound": EXIT_BAD_DATA,
    "DataInvalid": EXIT_BAD_DATA,
    "SourceChanged": EXIT_BAD_DATA,
    "StorageRefused": EXIT_BAD_REQUEST,
    "StorageUnreachable": EXIT_INTERNAL,
    "OutputConflict": EXIT_BAD_REQUEST,
    # A node whose GPU is not seen is broken; another pod may land on a sound one.
    "NoGpu": EXIT_INTERNAL,
    "MethodNotApplicable": EXIT_BAD_REQUEST,
    "OutOfMemory": EXIT_DOES_NOT_FIT,
    "OutOfDisk": EXIT_DOES_NOT_FIT,
    "LossNotFinite": EXIT_BAD_REQUEST,
    **dict.fromkeys(SIGN_NAMES, EXIT_BAD_REQUEST),
    "Stalled": EXIT_INTERNAL,
    "Preempted": EXIT_PREEMPTED,
    "InternalError": EXIT_INTERNAL,
}
"""The exit code of each reason to fail."""

RETRYABLE_CODES: Final = (EXIT_INTERNAL, EXIT_PREEMPTED)


class RunError(Exception):
    """The run cannot go on; `message` names the cause and the next step."""

    metrics: Metrics | None = None
    """What is known of the run at its end."""

    def __init__(self, reason: TrainerReason, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.reason: TrainerReason = reason
        self.message = message
        self.exit_code = EXIT_CODES[reason] if exit_code is None else exit_code

    def record(self) -> RunRecord:
        """Return the run's final record."""
        retryable = self.exit_code in RETRYABLE_CODES
        return RunRecord(reason=self.reason, message=self.message, retryable=retryable, metrics=self.metrics)


def preempted(checkpoint: int | None) -> RunError:
    """Return the end of a run that was asked to stop; `checkpoint` is the step of the newest one in the store."""
    saved = (
        "it goes on from the newest checkpoint, if there is one"
        if checkpoint is None
        else f"it goes on from the checkpoint of step {checkpoint}"
    )
    return RunError("Preempted", f"stopped by SIGTERM before the end and nothing published; made again, {saved}")


def out_of_memory(what: str) -> RunError:
    """Return the end of a run that does not fit; `what` says which memory ran out."""
    return RunError("OutOfMemory", f"{what} ran out of memory: {ADVICE_OUT_OF_MEMORY}")


def out_of_memory_outside_training(stage: str) -> RunError:
    """Return the end of a run whose files alone do not fit; no hyperparameter changes that."""
    return RunError(
        "OutOfMemory", f"the container ran out of memory in the stage {stage}: raise the memory of compute.resources"
    )


_ADVICE_NOT_FINITE = (
    "lower training.learningRate, lengthen training.warmupRatio or lower training.maxGradNorm, and look at the data of"
    " that step"
)


def not_finite(what: str, step: int) -> RunError:
    """Return the end of a run that diverged."""
    return RunError("LossNotFinite", f"{what} is not a finite number at step {step}: {_ADVICE_NOT_FINITE}")


def stalled(step: int, rank: int, limit: float, usual: float) -> RunError:
    """Return the end of a rank that made no step for `limit` seconds; steps took `usual` seconds before."""
    return RunError(
        "Stalled",
        f"no step was made in {limit:.4g} s after step {step} (rank {rank}; a step took {usual:.3g} s before). The log"
        " has the stacks of all threads, of each rank: where they wait in a collective, another rank or the GPUs'"
        " connection hangs; where in loading a batch, the node's disk or memory. If steps may take so long, raise"
        " training.stallTimeoutSeconds",
    )


def failed_by(sign: Sign, signs: list[Sign], steps: int) -> RunError:
    """Return the end of a run after so many steps that a sign ends, as the request says; `signs`: all that it had."""
    error = RunError(
        sign.name,
        f"{sign.told}. Nothing is published, as training.signs.failOn says; checkpoints that were stored stay, and a"
        f" job that asks for the same without {sign.name} there goes on from the newest",
    )
    error.metrics = Metrics(steps=steps, signs=signs)
    return error


def disk_full(error: Exception) -> RunError:
    """Return the end of a run whose scratch volume or node has no room left."""
    return RunError(
        "OutOfDisk",
        f"no room is left for the run's files ({error}): raise compute.scratch (or set it, so that a node with enough"
        " room is chosen), or choose a method that writes less than a full fine-tune",
    )


def internal(error: BaseException) -> RunError:
    """Return the end of a run that failed in a way nobody foresaw, with the place where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return RunError("InternalError", f"{type(error).__name__}: {error}{where}; the pod's log has the whole trace")


_DISK_IS_FULL: Final = (
    "No space left on device",
    "Disk quota exceeded",
    # torch's writer, which does not say why: at once, or on the way out.
    "PytorchStreamWriter failed writing",
    ". unexpected pos ",
)
_GPU_IS_FULL: Final = ("CUDA error: out of memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def explain(error: Exception) -> RunError:
    """Return any failure as the one that the record is made of."""
    if isinstance(error, RunError):
        return error
    if isinstance(error, StorageError):
        return RunError(error.reason, str(error), EXIT_INTERNAL if error.retryable else EXIT_CODES[error.reason])
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return out_of_memory("the process")
    # torch's own class, which is not to be imported for this, and what is said past torch's allocator.
    if type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _GPU_IS_FULL):
        return out_of_memory("the GPU")
    # safetensors and torch raise classes of their own.
    if any(words in str(error) for words in _DISK_IS_FULL):
        return disk_full(error)
    return internal(error)
