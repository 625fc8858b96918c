"""Weights & Biases: its server, or files for it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import wandb

from lorikeet_api.contract import Metrics
from lorikeet_api.tracking import Wandb
from lorikeet_storage import run_place
from lorikeet_trainer.points import Point
from lorikeet_trainer.state import Ending
from lorikeet_trainer.trackers.tracker import Lost, Subject, Tracker, numbers

FOLDER: Final = "wandb"
"""Where files for it lie in the run's folder."""
_BEGIN_SECONDS: Final = 10.0
_FINISH_SECONDS: Final = 10.0
"""What may be left to be sent once training is over: it is sent all the time."""


class WandbTracker(Tracker):
    """One run of one project. It passes over steps that it has already."""

    def __init__(self, settings: Wandb, subject: Subject) -> None:
        self._settings = settings
        self._subject = subject
        self._run: wandb.Run | None = None

    def begin(self) -> str:
        """Begin the run, or take it up again."""
        settings, subject = self._settings, self._subject
        folder = subject.layout.tracking
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=settings.project,
                entity=settings.entity,
                id=subject.identity,
                name=subject.contract.name,
                notes=subject.request,
                config={**subject.configuration, "lorikeet": subject.facts},
                mode=settings.mode,
                resume="allow",
                dir=str(folder),
                settings=self._quiet(),
            )
        except Exception:
            wandb.teardown()  # its process would take the next try for a second run of the same name
            raise
        return self._run.url or f"{run_place(subject.contract)}/{FOLDER}"

    def _quiet(self) -> wandb.Settings:
        """Return settings by which the run's figures are sent, and nothing about the machine or whose code it is."""
        own = {"base_url": self._settings.base_url} if self._settings.base_url is not None else {}
        return wandb.Settings(
            init_timeout=_BEGIN_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            **own,
        )

    def tell(self, points: Sequence[Point]) -> None:
        """Hand points to its process, which sends them."""
        for point in points:
            self._begun.log(point.values, step=point.step)

    def finish(self, metrics: Metrics) -> None:
        """Add the figures to the summary and wait until all is sent, or written."""
        self._begun.summary.update(numbers(metrics))
        try:
            self._begun.finish(exit_code=0)
        except TimeoutError as error:
            raise Lost(f"not all was sent within {_FINISH_SECONDS:.0f} s") from error
        if self._settings.mode == "offline":
            written = Path(self._begun.dir).parent
            wandb.teardown()  # finish() may return before its process has written everything: this waits for that
            made = self._subject.layout.tracking / "made" / FOLDER
            shutil.copytree(
                written, made / written.name, ignore=shutil.ignore_patterns("logs", "tmp"), dirs_exist_ok=True
            )
            self._subject.give(made)

    def end(self, ending: Ending) -> None:
        """Leave an attempt that was stopped as one that goes on."""
        if ending == "published":
            return  # finished
        if ending == "stopped":
            self._begun.mark_preempting()
        self._begun.finish(exit_code=1)

    @property
    def _begun(self) -> wandb.Run:
        assert self._run is not None  # noqa: S101 - `begin` comes first
        return self._run
