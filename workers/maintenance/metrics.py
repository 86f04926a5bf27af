"""What the maintenance worker counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

REAPED = Counter(
    "millrace_reaped_jobs",
    "Jobs taken from dead workers or out of the queue, by what became of them",
    ["found", "verdict"],
)
GRACES = Counter("millrace_reaper_graces", "Times the reaper held still after losing Postgres")
HINTS = Counter("millrace_rehints", "Hints of the re-hinter", ["result"])
FORGOTTEN = Counter("millrace_forgotten_hints", "Hints taken for lost together with Redis")
REDIS_UP = Gauge("millrace_hint_redis_up", "Whether the re-hinter reaches the hints' Redis")
NUDGES = Counter("millrace_settle_nudges", "Times billing was told again of an unsettled job")
DESERTED = Counter("millrace_deserted_jobs_ended", "Jobs whose clients left with their API process")
WEBHOOKS = Counter("millrace_webhook_attempts", "Attempts to deliver a webhook", ["result"])
EXPIRED = Counter("millrace_expired_rows", "Rows that retention emptied or deleted", ["what"])
EXPIRY_FAILURES = Counter(
    "millrace_expiry_failures", "Kinds that a run of retention failed on", ["what"]
)
UNITS_FAILED = Counter(
    "millrace_maintenance_failures",
    "Units of maintenance that failed and held up no other",
    ["what"],
)
