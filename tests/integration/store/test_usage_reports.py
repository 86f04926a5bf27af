"""What a tenant used in a period: from its first moment to before its last, by model and tier."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from store.usage_reports import usage_report
from tasks.ids import uuid7
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import another_tenant
from tests.support.jobs import Jobs

_ADD = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at)
VALUES (%s, %s, 'key', %s, %s, 'completed', 'tenant', 10, 2, 3, 1, 7, 'USD', %s)
"""
START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
END = START + timedelta(hours=1)
MOMENT = timedelta(microseconds=1)


def test_a_period_holds_its_first_moment_and_not_its_last(jobs: Jobs, as_api: AsApi) -> None:
    stranger = another_tenant(jobs)
    used = [
        (jobs.tenant_id, "b", "default", START),
        (jobs.tenant_id, "b", "default", END - MOMENT),
        (jobs.tenant_id, "a", "priority", START),
        (jobs.tenant_id, "a", "default", START),
        (jobs.tenant_id, "b", "default", START - MOMENT),
        (jobs.tenant_id, "b", "default", END),
        (stranger, "b", "default", START),
    ]
    with jobs.connect() as owner, owner.cursor() as cursor:
        cursor.executemany(_ADD, [(uuid7(), *row) for row in used])

    report = as_api(lambda pool: usage_report(pool, jobs.tenant_id, start=START, end=END))

    lines = [
        {
            "model": model,
            "service_tier": tier,
            "num_jobs": number,
            "input_tokens": 10 * number,
            "cached_tokens": 2 * number,
            "output_tokens": 3 * number,
            "amount_micros": 7 * number,
        }
        for model, tier, number in [("a", "default", 1), ("a", "priority", 1), ("b", "default", 2)]
    ]
    assert report.lines == lines
    assert (report.balance_micros, report.held_micros) == (1_000_000_000, 0)
