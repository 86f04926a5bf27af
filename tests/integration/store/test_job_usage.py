"""Settled jobs page by page: those of a period, and those behind a number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from store import job_usage
from store.job_usage import Mark
from tests.integration.store.conftest import AsApi
from tests.support.rows import Rows

START = datetime(2026, 3, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
END = START + 10 * SECOND

_ADD = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at)
VALUES (gen_random_uuid(), %s, 'key', 'tiny', 'default', 'completed', 'tenant', 5, 3, 7, 1, 9,
    'USD', %s)
RETURNING job_id
"""


def _add(rows: Rows, tenant: UUID, at: datetime) -> UUID:
    return UUID(str(rows.one(_ADD, tenant, at)["job_id"]))


def test_jobs_of_a_period_come_in_the_order_of_their_ends_and_none_twice(
    as_api: AsApi, rows: Rows
) -> None:
    tenant, other = rows.tenant(), rows.tenant()
    before, first, *_ = (
        _add(rows, tenant, at) for at in (START - SECOND, START, END, END + SECOND)
    )
    at_once = sorted(_add(rows, tenant, START + SECOND) for _ in range(3))
    last = _add(rows, tenant, END - SECOND)
    _add(rows, other, START)
    ordered = [first, *at_once, last]

    def page(after: Mark, limit: int = 2) -> list[tuple[UUID, Mark]]:
        found = as_api(
            lambda pool: job_usage.list_job_usage(pool, tenant, after=after, end=END, limit=limit)
        )
        return [(row["job_id"], Mark.behind(row)) for row in found]

    mark = Mark(START)
    walked = []
    while found := page(mark):
        assert len(found) <= 2
        walked += [job for job, _ in found]
        mark = found[-1][1]
    assert walked == ordered
    assert [job for job, _ in page(Mark(START - SECOND), 9)] == [before, *ordered]


def test_jobs_behind_a_number_come_as_they_were_settled(as_api: AsApi, rows: Rows) -> None:
    tenant = rows.tenant()
    made = [_add(rows, tenant, START - number * SECOND) for number in range(4)]
    _add(rows, rows.tenant(), START)

    def page(after: int) -> list[tuple[UUID, int]]:
        found = as_api(lambda pool: job_usage.list_settled(pool, tenant, after=after, limit=3))
        return [(row["job_id"], row["settled_seq"]) for row in found]

    first = page(0)
    assert [job for job, _ in first] == made[:3]
    assert [job for job, _ in page(first[1][1])] == made[2:]
    [(_, last)] = page(first[2][1])
    assert page(last) == []


def test_a_settled_job_is_found_by_its_id(as_api: AsApi, rows: Rows) -> None:
    tenant = rows.tenant()
    first, second = (_add(rows, tenant, START + number * SECOND) for number in range(2))

    def found(job: UUID) -> tuple[UUID, datetime] | None:
        row = as_api(lambda pool: job_usage.find_job_usage(pool, tenant, job))
        return (row["job_id"], row["created_at"]) if row else None

    assert found(first) == (first, START)
    assert found(second) == (second, START + SECOND)
    assert found(tenant) is None
