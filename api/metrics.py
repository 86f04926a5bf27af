"""What the API counts. Labels come from small fixed sets: never a tenant, key, job or raw path."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

registry = CollectorRegistry()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

requests = Counter(
    "millrace_api_requests_total", "Requests by outcome.", ("method", "route", "status"),
    registry=registry,
)  # fmt: skip
request_seconds = Histogram(
    "millrace_api_request_seconds",
    "From the first byte of a request to the first byte of its answer.",
    ("route",),
    buckets=_SECONDS,
    registry=registry,
)
jobs_admitted = Counter(
    "millrace_api_jobs_admitted_total", "Jobs accepted.", ("service_tier",), registry=registry
)
jobs_replayed = Counter(
    "millrace_api_jobs_replayed_total",
    "Requests answered by an earlier job of the same Idempotency-Key.",
    registry=registry,
)
jobs_deserted = Counter(
    "millrace_api_jobs_deserted_total",
    "Jobs cancelled because their clients left and nobody came back.",
    registry=registry,
)
rate_limited = Counter(
    "millrace_api_rate_limited_total",
    "Requests refused by a rate limit of their tenant.",
    ("limit",),
    registry=registry,
)
limits_counted_locally = Counter(
    "millrace_api_limits_counted_locally_total",
    "Looks at rate limits while Redis was away, counted in this process alone.",
    registry=registry,
)
admission_seconds = Histogram(
    "millrace_api_admission_seconds",
    "Validating, counting tokens and committing one job.",
    buckets=_SECONDS,
    registry=registry,
)
prompt_seconds = Histogram(
    "millrace_api_prompt_seconds",
    "Rendering and tokenizing one prompt, waiting for a thread included.",
    buckets=_SECONDS,
    registry=registry,
)
grammars_checked = Counter(
    "millrace_api_grammars_checked_total",
    "Grammars of requests, by whether they can be used.",
    ("outcome",),
    registry=registry,
)
grammar_seconds = Histogram(
    "millrace_api_grammar_seconds",
    "Compiling one grammar that was not seen before, waiting for a process included.",
    buckets=_SECONDS,
    registry=registry,
)
enqueue_seconds = Histogram(
    "millrace_api_enqueue_seconds",
    "From commit to the hint standing in its queue.",
    buckets=_SECONDS,
    registry=registry,
)
hints_lost = Counter(
    "millrace_api_hints_lost_total",
    "Hints not sent; the re-hinter sends them again.",
    ("reason",),
    registry=registry,
)
open_streams = Gauge("millrace_api_open_streams", "Event streams open now.", registry=registry)
streams_ended = Counter(
    "millrace_api_streams_ended_total", "Event streams by how they ended.", ("how",),
    registry=registry,
)  # fmt: skip
stream_catch_ups = Counter(
    "millrace_api_stream_catch_ups_total", "Reads of a token log from Redis.", registry=registry
)
hub_reconnects = Counter(
    "millrace_api_hub_reconnects_total",
    "Times the pub/sub connection was lost and made anew.",
    registry=registry,
)
