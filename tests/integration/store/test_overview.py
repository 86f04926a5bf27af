"""How many jobs there are, over all tenants."""

from __future__ import annotations

from datetime import timedelta

from store.overview import jobs_by_status
from tests.support.jobs import Jobs
from tests.support.rows import Rows


def test_open_jobs_of_any_age_and_those_that_ended_within_a_day_are_counted(jobs: Jobs) -> None:
    with jobs.connect() as owner:
        rows = Rows(owner)
        one, other = rows.tenant(), rows.tenant()
        for tenant in (one, one, other):
            rows.job(tenant)
        for status, age in (
            ("completed", timedelta(hours=23)),
            ("completed", timedelta(hours=25)),
            ("failed", timedelta(minutes=1)),
            ("cancelled", timedelta(days=2)),
        ):
            job_id = rows.job(one, status=status, attempt=1)
            owner.execute("UPDATE jobs SET finished_at = now() - %s WHERE id = %s", (age, job_id))

        counts = jobs_by_status(owner)

    assert counts == {"queued": 3, "completed": 1, "failed": 1}
