"""Prometheus metrics of the inference worker. Labels come from small fixed sets."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

TICKETS = Counter(
    "millrace_tickets_total", "Tickets taken, by what became of them.", ["result"]
)  # claimed, surplus, refused
ATTEMPTS = Counter(
    "millrace_attempts_total", "Attempts ended, by outcome.", ["model", "tier", "outcome"]
)
STAGE_SECONDS = Histogram(
    "millrace_stage_seconds", "Time of one stage of an attempt.", ["stage"], buckets=_SECONDS
)  # claim, open_stream, first_token, generate, finish
STAGE_ERRORS = Counter("millrace_stage_errors_total", "Stages that failed.", ["stage", "code"])
OUTPUT_TOKENS = Counter("millrace_output_tokens_total", "Tokens produced.", ["model", "tier"])
PUBLISH_FAILURES = Counter("millrace_publish_failures_total", "Pipelines to Redis that failed.")
BEATS = Counter("millrace_beats_total", "Heartbeats, by result.", ["result"])
RUNNING = Gauge("millrace_running_jobs", "Jobs this worker holds.")
