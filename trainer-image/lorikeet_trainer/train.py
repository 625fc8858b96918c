"""The second stage, one process a rank: render, load, train, evaluate, save."""

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from time import monotonic
from typing import Any, Final, cast

import datasets  # type: ignore[import-untyped]
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from lorikeet_api import objectives as api
from lorikeet_api.contract import Metrics, RunContract, RunRecord, Template
from lorikeet_run import log, tokenised
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.mixture import mix
from lorikeet_run.render import OWN_TEMPLATE, render_data
from lorikeet_run.rendered import Rendered, RenderedData, check
from lorikeet_run.report import Answer, DataProfile, Sample
from lorikeet_run.rows import Epoch, Rows
from lorikeet_run.sources import read_data
from lorikeet_run.tokenizer import limits, load_tokenizer, stop_ids
from lorikeet_run.tokens import TokenRow, Tokens
from lorikeet_trainer import chosen, device, loop, methods, model, samples, signs
from lorikeet_trainer.checkpoints import Keeper
from lorikeet_trainer.evaluate import Passes
from lorikeet_trainer.exam import Exam
from lorikeet_trainer.methods import Trainable
from lorikeet_trainer.objectives import Setting, Sft, make_objective
from lorikeet_trainer.points import Feed
from lorikeet_trainer.profile import profile
from lorikeet_trainer.progress import Endpoint, Reporter
from lorikeet_trainer.report import Report
from lorikeet_trainer.selection import Selection
from lorikeet_trainer.signs import Lookout
from lorikeet_trainer.spent import spent
from lorikeet_trainer.state import COURSE, Course, Layout, LossPoint, MetricsFile, Prepared, Standing, Trained
from lorikeet_trainer.watchdog import Watchdog

_LIBRARIES: Final = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Examples:
    """The run's data as tokens."""

    train: Epoch[TokenRow]
    held_out: Rows[TokenRow]
    test: Rows[TokenRow]
    general: Rows[Tokens]
    template: Template
    dropped: int
    stop_percent: float | None
    profile: DataProfile


@dataclass
class Session:
    """What the parts of the stage share."""

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


def train(contract: RunContract, layout: Layout) -> RunRecord | None:
    """Train what `prepare` fetched, and leave what is to be published. Raises RunError."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    prepared = Prepared.read(layout.prepared)
    hyper = Hyperparameters.of(contract, prepared.fitting)
    session = Session(contract, layout, prepared, hyper, device.choose(contract))
    if prepared.probe_seconds is not None:
        session.seconds["probe"] = prepared.probe_seconds
    methods.check(model.shape(layout.model, contract.objective), contract.method)
    tokenizer = load_tokenizer(layout.model)
    with session.part("render"):
        examples = render(session, tokenizer)
    with session.part("load"):
        trainable = load(session)
        passes = passes_of(session, tokenizer)
        objective = make_objective(contract, layout, tokenizer, session.compute, passes)
    # What the model before training makes of the data is part of it, where the objective measures by that.
    with session.part("reference"):
        trainer = objective.trainer(setting(session, trainable, tokenizer), examples.train)
        loop.adopt(trainer, trainable)
        held_out = objective.judge(trainable.model, examples.held_out, passes)
        test = objective.judge(trainable.model, examples.test, passes)
        general = Sft(api.Sft()).judge(trainable.model, examples.general, passes)
    questions = samples.questions(objective.asked(examples.held_out))
    exam = Exam(
        held_out=held_out,
        test=test,
        general=general,
        answer=(lambda: answers(session, trainable, tokenizer, questions)) if questions else None,
        timed=session.part,
    )
    # The ranks go in step: the first one speaks for all.
    reporter = Reporter(Endpoint.of() if session.compute.rank == 0 else None)
    feed = Feed(layout.points if contract.tracking is not None and session.compute.rank == 0 else None)
    selection = select(session, trainable, examples)
    resumed = Course.read(layout.resume / COURSE) if session.prepared.checkpoint is not None else None
    base = resumed.base if resumed else exam.before()
    report = Report(
        exam.held_out,
        exam.answer,
        session.hyper.eval_steps,
        reporter,
        session.compute.held_memory,
        selection,
        feed,
        objective.figures,
        Lookout(
            session.hyper.max_grad_norm,
            # What rlhf minimises says nothing of how good the answers are.
            compares_losses=contract.objective.rlhf is None,
            repeated=[answer.repeated for answer in base.answers],
            meant=[samples.repeated(question.expected.tolist()) for question in questions],
        ),
        contract.training.fails_on,
    )
    keeper = Keeper(trainer, report, layout, session.hyper.checkpoints.every_steps, base, resumed)
    trainer.add_callback(keeper)
    trainer.add_callback(report)
    rank = session.compute.rank
    watchdog = Watchdog(session.hyper.stall_timeout_seconds, rank, layout.result("train", rank))
    trainer.add_callback(watchdog)
    with session.part("train"), closing(watchdog):
        outcome = loop.fit(trainer, trainable, keeper, session.hyper.ranks)
    session.seconds |= {
        "steps": round(outcome.seconds - keeper.checkpoint_seconds, 3),
        "checkpoints": round(keeper.checkpoint_seconds, 3),
        "evals": round(keeper.eval_seconds, 3),
    }
    reporter.stage("evaluate")
    published = outcome.steps
    if selection.is_wanted:
        with session.part("last_eval"):
            report.evaluate_last(outcome.steps)
        if session.hyper.publish == "best":
            published = selection.restore(outcome.steps)
    trainable.finish()
    final = exam.after(outcome.steps)
    look_at_the_end(report, base, final, outcome.steps, published)
    if session.compute.rank == 0 or trainable.is_sharded:
        with session.part("save"):
            save(session, trainable, tokenizer)
    if session.compute.rank == 0:
        metrics = figures(session, examples, trainable, outcome, base, final, selection.best).model_copy(
            update={"checkpoint_bytes": keeper.newest_bytes, "signs": report.lookout.seen or None}
        )
        file = MetricsFile(metrics=metrics, curve=report.curve, pace=report.pace, seconds=session.seconds)
        leave(session, examples, file, samples.side_by_side(questions, base.answers, final.answers, tokenizer))
    reporter.close()
    return None


def look_at_the_end(report: Report, base: Standing, final: Standing, steps: int, published: int) -> None:
    """Look for the signs that only the trained model shows. Raises RunError by the name of one that ends the run.

    The answers are those of the weights after the step `published`.
    """
    if final.held_out and not report.has_evaluated(steps):
        report.curve.append(LossPoint(step=steps, eval_loss=final.held_out.loss))
    report.heed(report.lookout.look(report.curve), steps)
    lost = signs.forgetting(steps, base.general.loss, final.general.loss) if base.general and final.general else None
    found = report.lookout.look_at_answers(published, [answer.repeated for answer in final.answers])
    report.heed([*found, *report.lookout.add([lost])], steps)


def answers(
    session: Session, trainable: Trainable, tokenizer: PreTrainedTokenizerBase, questions: list[samples.Question]
) -> list[Answer]:
    """Return what the model answers now."""
    stops = stop_ids(session.layout.model, tokenizer)
    return samples.answers(trainable.model, tokenizer, questions, stops, session.compute.autocast)


def render(session: Session, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Return the run's data as tokens. Raises RunError."""
    contract = session.contract
    made = _tokenised(session, tokenizer)
    positions, vocabulary = limits(session.layout.model)
    stop_percent = check(contract, made.counts, positions, vocabulary)
    rendered = made.of("training")
    held, judging, general = (next(iter(made.of(use)), Rendered()) for use in ("evaluation", "test", "general"))
    dropped = sum(one.dropped for _, one in made.by_use)
    chosen = mix([len(one.rows) for one in rendered], contract.dataset.weights, session.hyper.seed)
    log.event(
        "examples",
        train=len(chosen),
        held_out=len(held.rows),
        test=len(judging.rows),
        general=len(general.rows),
        dropped=dropped,
        template=made.template.source,
        stop_token_percent=stop_percent,
    )
    return Examples(
        Epoch.of([one.rows for one in rendered], chosen),
        held.rows,
        judging.rows,
        cast("Rows[Tokens]", general.rows),
        made.template,
        dropped,
        stop_percent,
        profile(contract, session.layout, session.prepared.data, rendered, held, judging, general),
    )


def _tokenised(session: Session, tokenizer: PreTrainedTokenizerBase) -> RenderedData:
    """Return the run's rows as preflight has left them, or rendered here; the tokenizer has the run's template then."""
    contract, layout = session.contract, session.layout
    if not session.prepared.is_tokenised:
        return render_data(contract, layout.model, tokenizer, read_data(contract, layout.data, session.prepared.data))
    made = tokenised.read(layout.tokens)
    if made.template.source == "lorikeet":
        tokenizer.chat_template = OWN_TEMPLATE
    return made


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


def select(session: Session, trainable: Trainable, examples: Examples) -> Selection:
    """Return how the best weights are told, where they are of use and there is something to tell them by."""
    hyper = session.hyper
    is_wanted = hyper.keeps_best and bool(examples.held_out)
    return Selection(trainable, session.layout.best, session.compute.rank == 0, is_wanted, hyper.early_stopping)


def passes_of(session: Session, tokenizer: PreTrainedTokenizerBase) -> Passes:
    """Return how rows are put through a model beside training: as training does."""
    return Passes(session.hyper.micro_batch_size, int(tokenizer.pad_token_id or 0), session.compute.autocast)


def save(session: Session, trainable: Trainable, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the adapter or the model to the output folder."""
    trainable.publish(session.layout.output, session.prepared.model, tokenizer)


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
