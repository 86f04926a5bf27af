"""The engine's own statistics as Prometheus metrics, read when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.inference.engine.protocol import EngineStats

_GAUGES = {
    "num_running": ("requests_running", "Generations in the batch."),
    "num_waiting": ("requests_waiting", "Generations that wait for room in the batch."),
    "kv_cache_usage": ("kv_cache_usage_ratio", "Share of the KV cache's pages in use."),
}
_COUNTERS = {
    "num_steps": ("steps", "Steps taken."),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens computed, those of the cache left out."),
    "generated_tokens": ("generated_tokens", "Tokens generated."),
    "num_preemptions": ("preemptions", "Generations that gave up their pages to older ones."),
    "num_out_of_memory": ("out_of_memory", "Steps taken again smaller for want of memory."),
    "num_restarts": ("restarts", "Restarts of the step loop after a fault."),
    "prefix_queries": ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    "prefix_hits": ("prefix_cache_hits", "Prompt tokens found in the prefix cache."),
}
_STAGES = {"schedule_s": "schedule", "run_s": "run", "sample_s": "sample", "emit_s": "emit"}


class EngineCollector(Collector):
    """One engine's statistics. Read from any thread."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for field, (name, text) in _GAUGES.items():
            yield GaugeMetricFamily(f"millrace_engine_{name}", text, getattr(stats, field))
        for field, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"millrace_engine_{name}", text, getattr(stats, field))
        seconds = CounterMetricFamily(
            "millrace_engine_step_seconds", "Time of all steps, by stage.", labels=["stage"]
        )
        for field, stage in _STAGES.items():
            seconds.add_metric([stage], getattr(stats, field))
        yield seconds


def export(registry: CollectorRegistry, stats: Callable[[], EngineStats]) -> None:
    """Show the statistics wherever the registry is shown."""
    registry.register(EngineCollector(stats))
