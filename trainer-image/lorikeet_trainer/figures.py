"""What a trained run came to: its figures, and what the next stage publishes and reads."""

import math
import resource
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Final

import torch

from lorikeet_api.contract import Metrics
from lorikeet_run.report import Sample
from lorikeet_trainer import device, loop
from lorikeet_trainer.examples import Examples
from lorikeet_trainer.methods import Trainable
from lorikeet_trainer.session import Session, named
from lorikeet_trainer.spent import spent
from lorikeet_trainer.state import LossPoint, MetricsFile, Standing, Trained

_LIBRARIES: Final = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "tokenizers", "safetensors")


def figures(
    session: Session,
    examples: Examples,
    trainable: Trainable,
    outcome: loop.TrainingOutcome,
    base: Standing,
    final: Standing,
    best: LossPoint | None,
) -> Metrics:
    """Return the run's figures."""
    quantized = trainable.quantized
    supervised = session.contract.objective.sft is not None
    held_out, test = final.held_out, final.test
    return Metrics(
        train_loss=outcome.loss,
        eval_loss=held_out.loss if held_out else None,
        base_eval_loss=base.held_out.loss if base.held_out else None,
        perplexity=perplexity(held_out.loss) if held_out and supervised else None,
        eval_accuracy=held_out.accuracy if held_out else None,
        base_eval_accuracy=base.held_out.accuracy if base.held_out else None,
        eval_margin=held_out.margin if held_out else None,
        eval_reward=held_out.reward if held_out else None,
        base_eval_reward=base.held_out.reward if base.held_out else None,
        eval_kl=held_out.kl if held_out else None,
        eval_length=held_out.length if held_out else None,
        base_eval_length=base.held_out.length if base.held_out else None,
        test_loss=test.loss if test else None,
        base_test_loss=base.test.loss if base.test else None,
        test_perplexity=perplexity(test.loss) if test and supervised else None,
        test_accuracy=test.accuracy if test else None,
        test_reward=test.reward if test else None,
        general_loss=final.general.loss if final.general else None,
        base_general_loss=base.general.loss if base.general else None,
        steps=outcome.steps,
        planned_steps=outcome.planned if outcome.planned > outcome.steps else None,
        best_step=best.step if best else None,
        best_eval_loss=best.eval_loss if best else None,
        resumed_from_step=session.prepared.checkpoint,
        train_examples=len(examples.train),
        packed_sequences=outcome.rows if session.contract.dataset.packing else None,
        eval_examples=len(examples.held_out),
        test_examples=len(examples.test) or None,
        dropped_examples=examples.dropped,
        trained_tokens=examples.train.trained,
        trainable_parameters=trainable.trained,
        trainable_percent=100.0 * trainable.trained / trainable.total,
        quantized_layers=quantized.layers if quantized else None,
        quantized_percent=quantized.percent if quantized else None,
        stop_token_percent=examples.stop_percent,
        tokens_per_second=outcome.tokens_per_second,
        train_seconds=outcome.seconds,
        **spent(session.prepared.seconds, session.seconds),
        peak_memory_bytes=_peak_memory(session.compute),
        device=session.compute.name,
        **asdict(named(session, trainable)),
    ).with_steps_percent()


def perplexity(loss: float) -> float | None:
    """Return exp(loss), or None where it is too large to be written; the loss says it then."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else None


def _peak_memory(compute: device.Compute) -> int:
    if compute.on_gpu:
        return int(torch.cuda.max_memory_reserved(compute.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux


def leave(session: Session, examples: Examples, metrics: MetricsFile, shown: list[Sample]) -> None:
    """Write what the next stage publishes and reads."""
    metrics.write(session.layout.output / "metrics.json")
    names = (*_LIBRARIES, "liger-kernel") if metrics.metrics.kernels == "liger" else _LIBRARIES
    libraries = {name: version(name) for name in names}
    Trained(
        metrics=metrics.metrics,
        template=examples.template,
        libraries=libraries,
        profile=examples.profile,
        samples=shown,
    ).write(session.layout.trained)
