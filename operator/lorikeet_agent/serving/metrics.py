"""The agent's own metrics, read off as they are asked for: an adapter that is gone has none."""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorikeet_agent.serving.holder import Holder


class Metrics(Collector):
    """Tells how a holder stands."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    def collect(self) -> list[Metric]:
        """Return all of them."""
        up = GaugeMetricFamily("lorikeet_agent_engine_up", "Whether the engine answers")
        up.add_metric([], self._holder.engine.answers)
        state = GaugeMetricFamily(
            "lorikeet_agent_adapter_state", "How a wanted adapter stands", labels=["served", "state"]
        )
        size = GaugeMetricFamily("lorikeet_agent_adapter_bytes", "Size of an adapter's files", labels=["served"])
        seconds = GaugeMetricFamily(
            "lorikeet_agent_adapter_load_seconds", "What fetching, loading and warming it took", labels=["served"]
        )
        failures = CounterMetricFamily(
            "lorikeet_agent_adapter_failures", "Attempts that have failed", labels=["served", "reason"]
        )
        for adapter in self._holder.adapters():
            told = adapter.told()
            state.add_metric([told.served, told.state], 1)
            size.add_metric([told.served], told.size_bytes)
            seconds.add_metric([told.served], told.seconds)
            for reason, count in adapter.failures.items():
                failures.add_metric([told.served, reason], count)
        return [up, state, size, seconds, failures]
