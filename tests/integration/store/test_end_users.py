"""A job's end user reaches `usage`, whichever statement ends the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import LiteralString
from uuid import UUID

import pytest

from billing.usage import settle_jobs
from cli.stack.database import DatabaseUrls
from store.attempts import finish
from store.jobs import request_cancel
from store.pools import DictConnection, connect
from store.reaping import reap_lost, reap_waiting
from tests.integration.store.conftest import AsApi
from tests.integration.store.writes import claim, expire, finish_of
from tests.support.jobs import Jobs

End = Callable[[Jobs, AsApi, DictConnection, UUID, UUID], None]


def _change(jobs: Jobs, statement: LiteralString) -> None:
    with jobs.connect() as owner:
        owner.execute(statement)


def _finished(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID, job_id: UUID
) -> None:
    claimed = claim(connection, worker_id, job_id)
    assert finish(connection, finish_of(claimed, worker_id))


def _cancelled_in_the_queue(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID, job_id: UUID
) -> None:
    assert as_api(lambda pool: request_cancel(pool, jobs.tenant_id, job_id)) is not None


def _lost_too_often(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID, job_id: UUID
) -> None:
    claim(connection, worker_id, job_id)
    _change(jobs, "UPDATE jobs SET fail_count = max_fails - 1")
    expire(jobs, worker_id)
    [reaped] = reap_lost(connection)
    assert reaped.status == "failed"


def _too_late(
    jobs: Jobs, as_api: AsApi, connection: DictConnection, worker_id: UUID, job_id: UUID
) -> None:
    _change(jobs, "UPDATE jobs SET deadline_at = now() - interval '1 s'")
    [reaped] = reap_waiting(connection)
    assert reaped.status == "failed"


@pytest.mark.parametrize("end", [_finished, _cancelled_in_the_queue, _lost_too_often, _too_late])
@pytest.mark.parametrize("end_user", ["ann", None])
def test_every_ending_names_the_end_user(
    *,
    database: DatabaseUrls,
    jobs: Jobs,
    as_api: AsApi,
    connection: DictConnection,
    worker_id: UUID,
    end: End,
    end_user: str | None,
) -> None:
    job_id = jobs.add(end_user=end_user)

    end(jobs, as_api, connection, worker_id, job_id)
    with connect(database.billing, application_name="test") as billing:
        assert settle_jobs(billing) == 1

    found = jobs.query("SELECT job_id, end_user FROM usage")
    assert found == [{"job_id": job_id, "end_user": end_user}]
