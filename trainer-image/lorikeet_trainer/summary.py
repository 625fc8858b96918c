"""A run's report, put together out of what its stages have left."""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lorikeet_api.contract import REPORT, RunContract
from lorikeet_api.objectives import Objective
from lorikeet_run import log
from lorikeet_run.report import Chart, RunReport, Series, Span, TrackerState, Unit, render
from lorikeet_trainer.state import Layout, LossPoint, MetricsFile, PacePoint, Prepared, Tracked, Trained

_PARTS: Final = {
    "probe": "Finding the micro batch",
    "render": "Examples to tokens",
    "load": "Loading the model",
    "reference": "Setting up, the reference with it",
    "base_eval": "Evaluation before training",
    "base_test": "Test set before training",
    "base_general": "General set before training",
    "base_samples": "Answers before training",
    "steps": "Optimiser steps",
    "checkpoints": "Checkpoints",
    "evals": "Evaluations on the way",
    "last_eval": "Evaluation after the last step",
    "eval": "Evaluation after training",
    "test": "Test set after training",
    "general": "General set after training",
    "samples": "Answers after training",
    "save": "Saving the result",
}
"""The parts of a run after it has fetched, in order, by their names in `MetricsFile.seconds`."""


_ORDER: Final = "negative log-likelihood of a pair's order, by the rewards"
_HELD_OUT: Final = {"dpo": _ORDER, "reward": _ORDER, "orpo": "the same", "kto": "the same", "rlhf": "minus the reward"}
"""What the loss on held-out rows is, by objective."""
_FIGURES: Final = {
    "accuracy": "Accuracy",
    "entropy": "Entropy",
    "kl": "KL divergence",
    "length": "Tokens of an answer",
    "margin": "Reward margin",
    "reward": "Reward",
}
"""What objectives tell beside the loss, by its names in `LossPoint.figures`."""


def write_report(contract: RunContract, layout: Layout, prepared: Prepared, trained: Trained) -> None:
    """Write the report into the output folder. A defect in it does not cost the run: then there is none."""
    try:
        file = MetricsFile.read(layout.output / "metrics.json")
        page = render(report(contract, prepared, trained, file, _trackers(layout)))
        _write(layout.output / REPORT, page)
    except Exception as error:  # noqa: BLE001 - what is trained is worth more than a page about it
        log.event("report_left_out", error=type(error).__name__, message=str(error))
        traceback.print_exc()


def _trackers(layout: Layout) -> list[TrackerState]:
    return Tracked.read(layout.tracked).trackers if layout.tracked.exists() else []


def _write(path: Path, page: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def report(
    contract: RunContract, prepared: Prepared, trained: Trained, file: MetricsFile, trackers: list[TrackerState]
) -> RunReport:
    """Return what the page shows."""
    return RunReport(
        contract=contract,
        metrics=file.metrics,
        charts=[
            *_learning(file.curve, file.metrics.base_eval_loss, contract.objective),
            *_of_objective(file.curve),
            *_pace(file.pace),
        ],
        spans=_spans(prepared.seconds, file.seconds),
        trackers=trackers,
        samples=trained.samples,
        profile=trained.profile,
        template=trained.template,
        base_model=prepared.model,
        starts=[*([prepared.start] if prepared.start is not None else []), *prepared.rewards],
        data=prepared.data,
        libraries=trained.libraries,
    )


def _learning(curve: Sequence[LossPoint], base: float | None, objective: Objective) -> list[Chart]:
    logged = [point for point in curve if point.loss is not None]
    held_out = [(point.step, point.eval_loss) for point in curve if point.eval_loss is not None]
    before = [(0, base)] if base is not None else []
    return [
        Chart(
            title="Loss",
            about="Mean negative log-likelihood of a trained token, in nats."
            if objective.sft is not None
            else f"Training: that of objective {objective.name}. Held out: {_HELD_OUT[objective.name]}.",
            series=[
                Series(name="Training", points=[(point.step, point.loss) for point in logged]),
                Series(name="Held out", points=[*before, *held_out]),
            ],
        ),
        _curve(
            "Learning rate",
            "Of the logged step.",
            [(point.step, point.learning_rate) for point in logged],
            from_zero=True,
        ),
        _curve(
            "Gradient norm",
            "Of the logged step, before clipping.",
            [(point.step, point.grad_norm) for point in logged],
            from_zero=True,
        ),
    ]


def _of_objective(curve: Sequence[LossPoint]) -> list[Chart]:
    """Return a chart of each figure that the objective tells beside the loss."""
    return [
        _curve(
            _FIGURES[name],
            "Of training, mean over the steps since the point before.",
            [(point.step, point.figures[name]) for point in curve if name in point.figures],
        )
        for name in sorted({name for point in curve for name in point.figures})
    ]


def _pace(pace: Sequence[PacePoint]) -> list[Chart]:
    return [
        _curve(
            "Tokens per second",
            "Over the steps since the point before; padding, evaluations and checkpoints not counted.",
            [(point.step, point.tokens_per_second) for point in pace],
            from_zero=True,
        ),
        _curve(
            "Memory",
            "Held by the first rank: of its GPU, else of its process.",
            [(point.step, float(point.memory_bytes)) for point in pace],
            from_zero=True,
            unit="bytes",
        ),
    ]


def _curve(
    title: str,
    about: str,
    points: Sequence[tuple[int, float | None]],
    *,
    from_zero: bool = False,
    unit: Unit = "number",
) -> Chart:
    """Return a chart of one series, which is called as the chart is."""
    return Chart(
        title=title, about=about, series=[Series(name=title, points=list(points))], from_zero=from_zero, unit=unit
    )


def _spans(fetch: float, seconds: Mapping[str, float]) -> list[Span]:
    return [
        Span(name="Fetching and checking", seconds=fetch),
        *(
            Span(name=title, seconds=seconds[part], is_steps=part == "steps")
            for part, title in _PARTS.items()
            if part in seconds
        ),
    ]
