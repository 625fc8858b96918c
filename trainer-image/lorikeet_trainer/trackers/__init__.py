"""Where a run is followed, one file a tracker. Their libraries are imported by `track` alone, beside training."""

from typing import assert_never

from lorikeet_api.tracking import TrackerName
from lorikeet_trainer.trackers.tracker import Lost, Subject, Tracker

__all__ = ["Lost", "Subject", "Tracker", "make_tracker"]


def make_tracker(name: TrackerName, subject: Subject) -> Tracker:
    """Return a tracker that the run's request names."""
    tracking = subject.contract.tracking
    assert tracking is not None  # noqa: S101 - who asks for one by name has read it there
    match name:
        case "mlflow":
            from lorikeet_trainer.trackers.mlflow import MlflowTracker

            assert tracking.mlflow is not None  # noqa: S101 - the same
            return MlflowTracker(tracking.mlflow, subject)
        case "wandb":
            from lorikeet_trainer.trackers.wandb import WandbTracker

            assert tracking.wandb is not None  # noqa: S101 - the same
            return WandbTracker(tracking.wandb, subject)
        case "tensorboard":
            from lorikeet_trainer.trackers.tensorboard import TensorBoardTracker

            return TensorBoardTracker(subject)
    assert_never(name)
