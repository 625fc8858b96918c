"""TensorBoard: one event file, in the run's folder while it trains and among what it publishes."""

import shutil
from collections.abc import Sequence
from time import monotonic, time
from typing import Final

from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboardX.record_writer import RecordWriter  # type: ignore[import-untyped]
from tensorboardX.summary import text  # type: ignore[import-untyped]

from lorikeet_api.contract import Metrics
from lorikeet_run import log
from lorikeet_storage import StorageError, leave_file, run_place
from lorikeet_trainer.points import Point
from lorikeet_trainer.state import Ending
from lorikeet_trainer.trackers.tracker import Subject, Tracker, numbers

EVENTS: Final = "tensorboard/events.out.tfevents.lorikeet"
"""The event file in the run's folder, on the way in `live/` of it: TensorBoard finds both. Each attempt writes it anew,
from the first point on."""
_EVERY_SECONDS: Final = 30.0
"""Between two uploads while it trains."""


class TensorBoardTracker(Tracker):
    """The run as an event file."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._path = subject.layout.tracking / EVENTS
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = RecordWriter(str(self._path))
        self._uploaded = monotonic()

    def begin(self) -> str:
        """Write the file's head, and the request."""
        contract = self._subject.contract
        self._write(Event(wall_time=time(), file_version="brain.Event:2"))
        about = "".join(f"- {name}: `{value}`\n" for name, value in self._subject.facts.items())
        told = f"{about}\n```yaml\n{self._subject.request}```\n"
        self._write(Event(wall_time=time(), step=0, summary=text("run", told)))
        return run_place(contract)

    def tell(self, points: Sequence[Point]) -> None:
        """Write points; now and then the file goes to the run's folder."""
        for point in points:
            self._scalars(point.values, point.step, point.time)
        self._writer.flush()
        if monotonic() - self._uploaded < _EVERY_SECONDS:
            return
        try:
            self._upload()
        except StorageError as error:
            log.event("tracking", tracker="tensorboard", message=f"not uploaded now: {error}")
        self._uploaded = monotonic()

    def finish(self, metrics: Metrics) -> None:
        """Write the run's figures at its last step, and have the file published."""
        self._scalars(numbers(metrics), metrics.steps or 0, time())
        self._writer.flush()
        made = self._subject.layout.tracking / "made" / EVENTS
        made.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._path, made)
        self._subject.give(made.parent)

    def end(self, ending: Ending) -> None:
        """Leave what an attempt has written that publishes nothing."""
        if ending != "published":
            self._upload()

    def _scalars(self, values: dict[str, float], step: int, when: float) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(wall_time=when, step=step, summary=summary))

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())

    def _upload(self) -> None:
        leave_file(self._subject.contract, self._path, EVENTS)
