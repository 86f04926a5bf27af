"""Counts over all tenants, for operators."""

from __future__ import annotations

from store.pools import DictConnection

# Ended jobs are counted for a day back, so that the answer doesn't slow down with the years.
_JOBS_BY_STATUS = """
    SELECT status, count(*) AS num_jobs FROM jobs
    WHERE finished_at IS NULL OR finished_at > now() - interval '1 day'
    GROUP BY status
"""


def jobs_by_status(connection: DictConnection) -> dict[str, int]:
    """Jobs that wait or run, and those that ended within a day."""
    rows = connection.execute(_JOBS_BY_STATUS).fetchall()
    return {row["status"]: row["num_jobs"] for row in rows}
