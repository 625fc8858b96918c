"""An MLflow tracking server, by its own client."""

import logging
from collections.abc import Sequence
from time import time
from typing import Final
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from lorikeet_api.contract import REPORT, Metrics
from lorikeet_api.tracking import Mlflow
from lorikeet_run import log
from lorikeet_trainer.points import Point
from lorikeet_trainer.state import Ending
from lorikeet_trainer.trackers.keys import in_short
from lorikeet_trainer.trackers.tracker import Subject, Tracker, flat, numbers

IDENTITY: Final = "lorikeet.identity"
"""The tag by which a later attempt finds the run."""
_MOST_PARAMS: Final = 100
_MOST_METRICS: Final = 1000
"""What one request may have."""
_LONGEST_PARAM: Final = 500
"""Characters of a param that servers of all versions take."""
_LONGEST_TAG: Final = 5000
"""The same of a tag."""
_STATUS: Final[dict[Ending, str]] = {"published": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker(Tracker):
    """One run of one experiment."""

    def __init__(self, settings: Mlflow, subject: Subject) -> None:
        self._settings = settings
        self._subject = subject
        self._client = MlflowClient(settings.uri)
        self._run: Run | None = None
        self._there: dict[str, int] = {}
        """The last step of each metric that an earlier attempt has told."""

    def begin(self) -> str:
        """Take up the run that is tagged as ours, or create it."""
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{IDENTITY}` = '{self._subject.identity}'", max_results=1)
        run = found[0] if found else self._create(experiment)
        self._client.update_run(run.info.run_id, status="RUNNING")
        for metric in run.data.metrics:
            history = self._client.get_metric_history(run.info.run_id, metric)
            self._there[metric] = max(one.step for one in history)
        params = flat(self._subject.configuration)
        absent = [Param(name, text[:_LONGEST_PARAM]) for name, text in params.items() if name not in run.data.params]
        for start in range(0, len(absent), _MOST_PARAMS):
            self._client.log_batch(run.info.run_id, params=absent[start : start + _MOST_PARAMS])
        if not found:
            self._leave(self._subject.request_file, self._subject.request, run)
        self._run = run
        return f"{self._settings.uri.rstrip('/')}/#/experiments/{experiment}/runs/{run.info.run_id}"

    def _experiment(self) -> str:
        """Return the id of the experiment, which another run may create at this moment."""
        name = self._settings.experiment or self._subject.contract.namespace
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def _create(self, experiment: str) -> Run:
        facts = {f"lorikeet.{name}": text[:_LONGEST_TAG] for name, text in self._subject.facts.items()}
        tags = {IDENTITY: self._subject.identity, **facts}
        if len(request := self._subject.request) <= _LONGEST_TAG - 20:
            tags["mlflow.note.content"] = f"```yaml\n{request}```"  # what MLflow's pages show as the description
        return self._client.create_run(experiment, tags=tags, run_name=self._subject.contract.name)

    def tell(self, points: Sequence[Point]) -> None:
        """Log what is not there yet."""
        self._log(
            [
                Metric(name, value, round(point.time * 1000), point.step)
                for point in points
                for name, value in point.values.items()
                if point.step > self._there.get(name, -1)
            ]
        )

    def finish(self, metrics: Metrics) -> None:
        """Log the run's figures, at its last step."""
        when = round(time() * 1000)
        self._log([Metric(name, value, when, metrics.steps or 0) for name, value in numbers(metrics).items()])

    def end(self, ending: Ending) -> None:
        """Set the run's status; one that is published has its report among its artifacts."""
        self._client.set_terminated(self._begun.info.run_id, _STATUS[ending])
        report = self._subject.layout.output / REPORT
        if ending == "published" and report.exists():
            self._leave(REPORT, report.read_text(encoding="utf-8"), self._begun)

    @property
    def _begun(self) -> Run:
        assert self._run is not None  # noqa: S101 - `begin` comes first
        return self._run

    def _log(self, metrics: Sequence[Metric]) -> None:
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._begun.info.run_id, metrics=metrics[start : start + _MOST_METRICS])

    def _leave(self, name: str, text: str, run: Run) -> None:
        """Leave a text among the run's artifacts, where the server takes them: it may keep them in a store of its own,
        of which it tells no more than the address. One that it cannot store costs a warning, and nothing else of the
        run there."""
        if urlsplit(run.info.artifact_uri).scheme != "mlflow-artifacts":
            return
        try:
            self._client.log_text(run.info.run_id, text, name)
        except Exception as error:  # noqa: BLE001 - of the server, of requests or of the disk
            message = f"{name} is not among its artifacts: {in_short(error)}"
            log.event("tracking", level=logging.WARNING, tracker="mlflow", message=message)
