"""A request that comes again without a key of its own: which job it means."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest

from store.admission import RETRY_WINDOW_S, NewJob, find_first_try
from tasks.ids import uuid7
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import another_tenant
from tests.support.jobs import Jobs


def _id_after(job_id: UUID, seconds: float) -> UUID:
    """Of a job that is made so much later."""
    return UUID(int=job_id.int + (int(seconds * 1_000) << 80))


def _first_try(as_api: AsApi, again: NewJob) -> UUID | None:
    return as_api(lambda pool: find_first_try(pool, again))


@pytest.mark.parametrize("seconds", [0.0, 60.0, RETRY_WINDOW_S - 1.0])
def test_it_is_the_same_job_for_as_long_as_clients_try_again(
    jobs: Jobs, as_api: AsApi, seconds: float
) -> None:
    first = jobs.add()

    again = jobs.new(id=_id_after(first, seconds))

    assert _first_try(as_api, again) == first


def test_later_it_is_another_job(jobs: Jobs, as_api: AsApi) -> None:
    first = jobs.add()

    assert _first_try(as_api, jobs.new(id=_id_after(first, RETRY_WINDOW_S + 1))) is None


def test_another_key_tenant_or_request_is_another_job(jobs: Jobs, as_api: AsApi) -> None:
    jobs.add()
    again = jobs.new()

    others = (
        replace(again, api_key_id="another"),
        replace(again, tenant_id=another_tenant(jobs)),
        replace(again, request_hash=b"another"),
    )

    assert [_first_try(as_api, other) for other in others] == [None, None, None]


@pytest.mark.parametrize("change", ["status = 'failed'", "deleted_at = now()"])
def test_a_job_that_failed_or_was_deleted_is_not_what_a_retry_is_for(
    jobs: Jobs, as_api: AsApi, change: str
) -> None:
    first = jobs.add()
    with jobs.connect() as owner:
        over = "finished_at = now(), status = 'completed'"
        owner.execute(f"UPDATE jobs SET {over} WHERE id = %s".encode(), (first,))
        owner.execute(f"UPDATE jobs SET {change} WHERE id = %s".encode(), (first,))

    assert _first_try(as_api, jobs.new()) is None


def test_of_several_it_is_the_last(jobs: Jobs, as_api: AsApi) -> None:
    jobs.add()
    last = jobs.add(id=uuid7())

    assert _first_try(as_api, jobs.new()) == last
