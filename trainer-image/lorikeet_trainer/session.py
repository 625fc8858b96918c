"""What the stages that have the model share, and how they come by it: `probe` and `train`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from lorikeet_api.batch import USUAL
from lorikeet_api.contract import RunContract
from lorikeet_run import log
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_trainer import chosen, device, loop, methods, model
from lorikeet_trainer.evaluate import Passes
from lorikeet_trainer.methods import Trainable
from lorikeet_trainer.objectives import Setting
from lorikeet_trainer.state import Layout, Prepared


@dataclass
class Session:
    """What the parts of a stage share."""

    contract: RunContract
    layout: Layout
    prepared: Prepared
    hyper: Hyperparameters
    compute: device.Compute
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each part took."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time and tell one part."""
        start = monotonic()
        yield
        self.seconds[name] = round(monotonic() - start, 3)
        log.event(name, seconds=self.seconds[name])


def load(session: Session) -> Trainable:
    """Return the base model with what is trained of it. Raises RunError."""
    contract, compute = session.contract, session.compute
    # The adapters' first weights are drawn at random.
    transformers.set_seed(session.hyper.seed)
    attention = chosen.attention(session.hyper.attention, compute)
    layout, shards = session.layout, methods.shards(contract, compute)
    if shards:
        device.join(compute)
    base = model.load(layout.model, contract.method, contract.objective, compute, attention, sharded=shards)
    kernels = chosen.kernels(session.hyper.kernels, compute, contract.method, contract.objective, base.config)
    if kernels == "liger":
        chosen.fuse(base)
    start = None if contract.start is None else layout.start
    trainable = methods.make_trainable(
        base, contract.method, compute, layout.model, layout.scratch, start, is_sharded=shards
    )
    log.event(
        "model",
        method=contract.method.name,
        device=compute.name,
        **asdict(named(session, trainable)),
        trained_parameters=trainable.trained,
        parameters=trainable.total,
        sharded=trainable.is_sharded,
        held_parameters=trainable.held,
        quantized_layers=trainable.quantized and trainable.quantized.layers,
    )
    return trainable


def named(session: Session, trainable: Trainable) -> chosen.Chosen:
    """Return what the run computes with."""
    return chosen.chosen(session.hyper, session.compute, session.contract.method, session.contract.objective, trainable)


def setting(session: Session, trainable: Trainable, tokenizer: PreTrainedTokenizerBase) -> Setting:
    """Return what the objective's trainer is made of."""

    def arguments(rows: int) -> dict[str, Any]:
        return loop.arguments(
            session.hyper,
            session.compute,
            optim=chosen.OPTIMIZERS[named(session, trainable).optimizer],
            steps=session.hyper.steps(rows),
            scratch=session.layout.scratch,
            sharded=trainable.is_sharded,
        )

    return Setting(trainable, tokenizer, arguments, session.layout.packed(session.compute.rank))


def passes_of(session: Session, tokenizer: PreTrainedTokenizerBase) -> Passes:
    """Return how rows are put through a model beside training: as training does.

    Those may be longer than what is trained on, so a micro batch that was found by trying is no measure for them.
    """
    size, asked = session.hyper.micro_batch_size, session.contract.training.micro_batch_size
    size = size if asked is not None else min(size, USUAL)
    return Passes(size, int(tokenizer.pad_token_id or 0), session.compute.autocast)
