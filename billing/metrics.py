"""What the billing service counts."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

SETTLED = Counter("millrace_settled_jobs", "Jobs whose outcome was settled")
SETTLE_SECONDS = Histogram("millrace_settle_seconds", "One settling transaction, of any size")
NOT_SETTLED = Counter("millrace_settle_failures", "Outcomes that could not be settled, each try")
NOT_RELEASED = Counter(
    "millrace_orphan_release_failures", "Reservations without a job that could not be released"
)
HINTS = Counter("millrace_settle_hints_received", "Hints that woke the settler")
TOKENS_GIVEN_BACK = Counter(
    "millrace_limits_tokens_given_back", "Tokens that jobs reserved of rate limits and didn't use"
)
TOKENS_NOT_GIVEN_BACK = Counter(
    "millrace_limits_tokens_not_given_back", "The same, left to come back by themselves"
)

# Each of these is a broken promise of another part of the platform. They stay 0.
ANOMALIES = Counter("millrace_billing_anomalies", "Invariants found broken", ["kind"])
OVER_RESERVATION = ANOMALIES.labels("over_reservation")
WITHOUT_RESERVATION = ANOMALIES.labels("without_reservation")
ORPHAN_RESERVATION = ANOMALIES.labels("orphan_reservation")
