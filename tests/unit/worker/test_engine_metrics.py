"""The engine's statistics on /metrics."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import CollectorRegistry, generate_latest

from workers.inference.engine.protocol import EngineStats
from workers.inference.engine_metrics import export

STATS = EngineStats(**{field.name: i + 1 for i, field in enumerate(fields(EngineStats))})


def test_every_statistic_is_shown_with_its_present_value() -> None:
    registry = CollectorRegistry()
    export(registry, lambda: STATS)
    lines = generate_latest(registry).decode().splitlines()
    values = {float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert values == {float(i + 1) for i in range(len(fields(EngineStats)))}
    assert f"millrace_engine_requests_running {float(STATS.num_running)}" in lines
    assert f'millrace_engine_step_seconds_total{{stage="run"}} {float(STATS.run_s)}' in lines
