"""Pages of a tenant's jobs: which jobs they hold, what they show of each, and where they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from psycopg.types.json import Jsonb

from store.jobs import MAX_PAGE_TOKENS, JobPage, list_jobs
from store.settings import keep
from tasks.ids import uuid7, uuid7_floor
from tests.integration.store.conftest import AsApi
from tests.support.jobs import Jobs
from tests.support.rows import Rows

DAY_MS = 86_400_000


@pytest.fixture
def tenant(jobs: Jobs) -> UUID:
    return jobs.tenant_id


def _page(as_api: AsApi, tenant: UUID, *, limit: int = 20) -> JobPage:
    return as_api(lambda pool: list_jobs(pool, tenant, limit=limit))


def _ids(page: JobPage) -> list[UUID]:
    return [row["id"] for row in page.rows]


def _add(jobs: Jobs, **changes: Any) -> UUID:
    """A finished job whose columns are changed so."""
    with jobs.connect() as owner:
        job_id = Rows(owner).ended_job(jobs.tenant_id, id=changes.pop("id", uuid7()))
        for name, value in changes.items():
            owner.execute(f"UPDATE jobs SET {name} = %s WHERE id = %s".encode(), (value, job_id))
    return job_id


def _answer(jobs: Jobs, job_id: UUID, output: Sequence[Any]) -> None:
    with jobs.connect() as owner:
        owner.execute(
            "INSERT INTO job_results (job_id, tenant_id, output, last_seq) VALUES (%s, %s, %s, 1)",
            (job_id, jobs.tenant_id, Jsonb(output)),
        )


def test_a_page_says_whether_there_are_more(jobs: Jobs, as_api: AsApi, tenant: UUID) -> None:
    newest_first = [_add(jobs) for _ in range(3)][::-1]

    pages = [_page(as_api, tenant, limit=limit) for limit in (1, 2, 3, 4)]

    assert [_ids(page) for page in pages] == [newest_first[:limit] for limit in (1, 2, 3, 4)]
    assert [page.has_more for page in pages] == [True, True, False, False]


def test_a_tenant_without_jobs_has_an_empty_page(as_api: AsApi, tenant: UUID) -> None:
    assert _page(as_api, tenant) == JobPage([], has_more=False)


def test_each_job_is_shown_with_its_choices_in_order_and_without_log_probabilities(
    jobs: Jobs, as_api: AsApi, tenant: UUID
) -> None:
    choices = [{"index": n, "text": f"answer {n}"} for n in range(3)]
    silent, speaks, other = _add(jobs), _add(jobs), _add(jobs)
    _answer(jobs, speaks, [choice | {"logprobs": {"values": [1]}} for choice in choices])
    _answer(jobs, other, choices[:1])

    rows = _page(as_api, tenant).rows

    shown = [(row["id"], row["output"]) for row in rows]
    assert shown == [(other, choices[:1]), (speaks, choices), (silent, None)]


@pytest.mark.parametrize(
    ("num_tokens", "num_shown"),
    [
        ([MAX_PAGE_TOKENS + 1, 1], 1),  # the first is shown however long it is
        ([1, MAX_PAGE_TOKENS - 2, 9, 9], 3),
        ([1, MAX_PAGE_TOKENS - 1, 9, 9], 2),
        ([None, 9, None, 9], 4),  # what has not ended counts nothing
    ],
)
def test_a_page_ends_before_it_says_too_much(
    jobs: Jobs,
    as_api: AsApi,
    tenant: UUID,
    num_tokens: Sequence[int | None],
    num_shown: int,
) -> None:
    oldest_first = [_add(jobs, output_tokens=number) for number in reversed(num_tokens)]

    page = _page(as_api, tenant)

    assert _ids(page) == oldest_first[::-1][:num_shown]
    assert page.has_more is (num_shown < len(num_tokens))


def test_what_is_deleted_or_not_to_be_stored_is_on_no_page(
    jobs: Jobs, as_api: AsApi, tenant: UUID
) -> None:
    stored = _add(jobs)
    _add(jobs, deleted_at=_now(jobs))
    _add(jobs, is_stored=False)
    waits = jobs.add(is_stored=False)
    with jobs.connect() as owner:
        deleted = jobs.add()
        owner.execute("UPDATE jobs SET deleted_at = now() WHERE id = %s", (deleted,))

    assert _ids(_page(as_api, tenant)) == [waits, stored]


def test_a_job_is_listed_for_as_long_as_its_result_is_kept_however_late_it_ended(
    jobs: Jobs, as_api: AsApi, tenant: UUID
) -> None:
    """A line of a batch may end a week after it came."""
    kept = keep().results_d
    now = _now(jobs)
    now_ms = int(now.timestamp() * 1_000)
    ids = [uuid7_floor(now_ms - int(days * DAY_MS) + 1) for days in (kept + 7, kept + 6)]
    with jobs.connect() as owner:
        over, late = (_add(jobs, id=job_id) for job_id in ids)
        for job_id, days in ((over, kept + 0.1), (late, kept - 0.1)):
            owner.execute(
                "UPDATE jobs SET finished_at = now() - make_interval(secs => %s) WHERE id = %s",
                (days * 86_400, job_id),
            )

    assert _ids(_page(as_api, tenant)) == [late]


def _now(jobs: Jobs) -> Any:
    return jobs.query("SELECT now() AS now")[0]["now"]
