"""How long answers usually are: of all tenants only where none can be made out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import InsufficientPrivilege

from cli.stack.database import DatabaseUrls
from store.estimates import OutputQuantiles, output_quantiles
from store.pools import connect
from tasks.ids import uuid7
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import another_tenant
from tests.support.jobs import Jobs

_ADD = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at)
VALUES (%s, %s, 'key', %s, 'default', 'completed', 'tenant', 1, 0, %s, 1, 1, 'USD', now() - %s)
"""


def _add(
    jobs: Jobs,
    tenant_id: UUID,
    lengths: Iterable[int],
    *,
    model: str = "demo",
    age: timedelta = timedelta(),
) -> None:
    rows = [(uuid7(), tenant_id, model, length, age) for length in lengths]
    with jobs.connect() as owner, owner.cursor() as cursor:
        cursor.executemany(_ADD, rows)


def _others(jobs: Jobs, number: int) -> list[UUID]:
    return [another_tenant(jobs, name=f"other-{n}") for n in range(number)]


def _ask(as_api: AsApi, jobs: Jobs, model: str = "demo") -> OutputQuantiles | None:
    return as_api(lambda pool: output_quantiles(pool, jobs.tenant_id, model))


def test_twenty_jobs_of_ones_own_are_enough(jobs: Jobs, as_api: AsApi) -> None:
    _add(jobs, jobs.tenant_id, range(1, 101))

    assert _ask(as_api, jobs) == OutputQuantiles("tenant", 100, p50=50, p90=90, p99=99)


def test_no_fewer_than_twenty_are(jobs: Jobs, as_api: AsApi) -> None:
    _add(jobs, jobs.tenant_id, range(1, 20))
    too_few = _ask(as_api, jobs)
    _add(jobs, jobs.tenant_id, [20])

    assert too_few is None
    assert _ask(as_api, jobs) == OutputQuantiles("tenant", 20, p50=10, p90=18, p99=20)


def test_only_the_latest_thousand_count(jobs: Jobs, as_api: AsApi) -> None:
    _add(jobs, jobs.tenant_id, [5] * 600, age=timedelta(days=2))
    _add(jobs, jobs.tenant_id, [7] * 900, age=timedelta(days=1))

    found = _ask(as_api, jobs)

    assert found == OutputQuantiles("tenant", 1_000, p50=7, p90=7, p99=7)


@pytest.mark.parametrize(
    "fields", [{"model": "another"}, {"age": timedelta(days=31)}, {"lengths": [0] * 19}]
)
def test_other_models_old_jobs_and_those_without_output_do_not_count(
    jobs: Jobs, as_api: AsApi, fields: dict[str, Any]
) -> None:
    _add(jobs, jobs.tenant_id, [9] * 19)
    _add(jobs, jobs.tenant_id, **{"lengths": [5] * 19, **fields})

    assert _ask(as_api, jobs) is None


def test_without_history_three_others_are_taken_together(jobs: Jobs, as_api: AsApi) -> None:
    for length, tenant_id in zip((10, 20, 30), _others(jobs, 3), strict=True):
        _add(jobs, tenant_id, [length] * 20)
    _add(jobs, jobs.tenant_id, [500] * 19)

    found = _ask(as_api, jobs)

    assert found == OutputQuantiles("all", 79, p50=20, p90=500, p99=500)
    assert _ask(as_api, jobs, "unknown") is None


@pytest.mark.parametrize(("num_others", "num_jobs"), [(2, 50), (3, 10), (1, 500)])
def test_too_few_others_or_jobs_say_nothing(
    jobs: Jobs, as_api: AsApi, num_others: int, num_jobs: int
) -> None:
    for tenant_id in _others(jobs, num_others):
        _add(jobs, tenant_id, [10] * num_jobs)
    _add(jobs, jobs.tenant_id, [10] * 19)  # the asking tenant is none of the three

    assert _ask(as_api, jobs) is None


def test_a_large_tenant_does_not_outweigh_the_others(jobs: Jobs, as_api: AsApi) -> None:
    large, *small = _others(jobs, 4)
    _add(jobs, large, [4_000] * 700)
    for tenant_id in small:
        _add(jobs, tenant_id, [10] * 40)

    found = _ask(as_api, jobs)

    assert found is not None
    assert (found.samples, found.p50) == (50 + 3 * 40, 10)


def test_only_the_api_may_ask_for_all(database: DatabaseUrls) -> None:
    with (
        connect(database.worker, application_name="test") as worker,
        pytest.raises(InsufficientPrivilege),
    ):
        worker.execute("SELECT output_quantiles('demo')")
