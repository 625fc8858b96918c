"""The stage that trains, one process a rank: render, load, train, evaluate, save."""

from contextlib import closing

import datasets  # type: ignore[import-untyped]
import transformers
from transformers import PreTrainedTokenizerBase

from lorikeet_api import objectives as api
from lorikeet_api.contract import RunContract, RunRecord
from lorikeet_run.hyperparameters import Hyperparameters
from lorikeet_run.report import Answer
from lorikeet_run.tokenizer import load_tokenizer, stop_ids
from lorikeet_trainer import device, loop, methods, model, samples, signs
from lorikeet_trainer.checkpoints import Keeper
from lorikeet_trainer.exam import Exam
from lorikeet_trainer.examples import Examples, render
from lorikeet_trainer.figures import figures, leave
from lorikeet_trainer.methods import Trainable
from lorikeet_trainer.objectives import Sft, make_objective
from lorikeet_trainer.points import Feed
from lorikeet_trainer.progress import Endpoint, Reporter
from lorikeet_trainer.report import Report
from lorikeet_trainer.selection import Selection
from lorikeet_trainer.session import Session, load, passes_of, setting
from lorikeet_trainer.signs import Lookout
from lorikeet_trainer.state import COURSE, Course, Layout, LossPoint, MetricsFile, Prepared, Standing
from lorikeet_trainer.watchdog import Watchdog


def train(contract: RunContract, layout: Layout, imported: float = 0.0) -> RunRecord | None:
    """Train what `prepare` fetched, and leave what is to be published. Raises RunError.

    `imported` is how long the libraries took to load, in seconds: the run has its GPU meanwhile.
    """
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    prepared = Prepared.read(layout.prepared)
    hyper = Hyperparameters.of(contract, prepared.fitting)
    session = Session(contract, layout, prepared, hyper, device.choose(contract))
    if prepared.probe_seconds is not None:
        session.seconds["probe"] = prepared.probe_seconds
    session.seconds["import"] = imported
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


def select(session: Session, trainable: Trainable, examples: Examples) -> Selection:
    """Return how the best weights are told, where they are of use and there is something to tell them by."""
    hyper = session.hyper
    is_wanted = hyper.keeps_best and bool(examples.held_out)
    return Selection(trainable, session.layout.best, session.compute.rank == 0, is_wanted, hyper.early_stopping)


def save(session: Session, trainable: Trainable, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the adapter or the model to the output folder."""
    trainable.publish(session.layout.output, session.prepared.model, tokenizer)
