"""What the operator tells Prometheus. No label carries the name of an object, but of ModelDeployments: these are few
and stay, where jobs come by the thousand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# A series of start times for every counter doubles the scrape and is read by nobody.
disable_created_metrics()  # type: ignore[no-untyped-call]

RECONCILES: Final = Counter(
    "lorikeet_reconcile_total", "Reconciles by outcome: ok, requeue, conflict, error, stuck", ["controller", "result"]
)
RECONCILE_SECONDS: Final = Histogram(
    "lorikeet_reconcile_seconds",
    "How long a reconcile took",
    ["controller"],
    buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120),
)
QUEUE_DEPTH: Final = Gauge("lorikeet_queue_depth", "Keys that wait for a worker", ["controller"])
QUEUE_OLDEST: Final = Gauge(
    "lorikeet_queue_oldest_key_seconds", "How long the oldest key has waited for a worker", ["controller"]
)
QUEUE_IN_FLIGHT: Final = Gauge("lorikeet_queue_in_flight", "Reconciles that run now", ["controller"])
WATCH_AGE: Final = Gauge("lorikeet_watch_age_seconds", "Time since the last event or list of a kind", ["kind"])
RELIST_AGE: Final = Gauge("lorikeet_relist_age_seconds", "Time since the last complete list of a kind", ["kind"])
MISSED: Final = Counter(
    "lorikeet_watch_missed_total", "Changes that a list found and the watch had not brought", ["kind"]
)
CACHED: Final = Gauge("lorikeet_cached_objects", "Objects in the cache", ["kind"])
API_REQUESTS: Final = Counter(
    "lorikeet_api_requests_total", "Requests to the API server; code 0: no answer", ["verb", "resource", "code"]
)
EVENTS_FAILED: Final = Counter("lorikeet_events_failed_total", "Kubernetes Events that could not be written")
PROGRESS_REPORTS: Final = Counter(
    "lorikeet_progress_reports_total", "Posts of trainers to the progress endpoint, by the answer's code", ["code"]
)
CERTIFICATE_EXPIRES: Final = Gauge(
    "lorikeet_progress_certificate_expires_seconds", "When the certificate of the progress endpoint expires (Unix time)"
)
LEADER: Final = Gauge("lorikeet_leader", "1 on the replica that leads, 0 on one that waits")
BUILD: Final = Info("lorikeet_build", "Version of the operator")


class _Read(Collector):
    """A gauge that is read off the cache when Prometheus asks: nothing to keep in step, nothing to drift."""

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], float]]
    ) -> None:
        self._name = name
        self._help = help_text
        self._labels = labels
        self._read = read

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for values, number in sorted(self._read().items()):
            family.add_metric(values, number)
        yield family

    def describe(self) -> Iterable[Metric]:
        """Name the metric without reading it, so that registering asks nothing of an empty cache."""
        return [GaugeMetricFamily(self._name, self._help, labels=self._labels)]


def read_gauge(
    name: str, help_text: str, labels: Sequence[str], read: Callable[[], Mapping[tuple[str, ...], float]]
) -> None:
    """Register a gauge; `read` is called at every scrape and returns a number for each tuple of the labels' values."""
    REGISTRY.register(_Read(name, help_text, labels, read))


def phase_gauge(name: str, help_text: str, read: Callable[[], Mapping[str, float]]) -> None:
    """Register a gauge by phase, such as `lorikeet_finetunejobs`; `read` is called at every scrape."""
    read_gauge(name, help_text, ["phase"], lambda: {(phase,): number for phase, number in read().items()})
