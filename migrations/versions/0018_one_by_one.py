"""Months are dropped each by itself, so that one that can't be dropped holds up no other. Indexes for
jobs that are to be deleted: what waits for a batch, and what is deleted already, is passed over.

Reads every job three times, and admission waits meanwhile. Works with the previous release, whose
purger reads more than it must until it is gone.
"""

from __future__ import annotations

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_UP = (
    # Ids are in the order of creation, so a month's jobs were over eight days after it ended: no
    # deadline is longer than a batch's seven. What is open still, or not settled, or of a batch that
    # goes on, keeps all tables of its month. Outcomes stay until their jobs are gone: a job that is
    # over has one. DETACH CONCURRENTLY is not to be had beside a default partition; the drop gives up
    # instead before the queries behind it have waited long. `drop_oldest_month` is the previous release's.
    """
    CREATE FUNCTION drop_month(parent text, month text, keep_s double precision) RETURNS boolean
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
        SET lock_timeout = '200ms' AS $$
    DECLARE
        name text := parent || '_p' || month;
        begins timestamptz;
        low uuid;
        high uuid;
    BEGIN
        IF parent IS NULL OR parent <> ALL (ARRAY['jobs', 'job_payloads', 'job_results',
                'job_attempts', 'job_outcomes']) OR month IS NULL OR month !~ '^[0-9]{6}$'
                OR keep_s IS NULL OR keep_s < 86400 THEN
            RAISE EXCEPTION 'no month of a table, or kept for less than a day';
        END IF;
        PERFORM set_config('timezone', 'UTC', true);
        begins := to_date(month, 'YYYYMM')::timestamptz;
        IF begins + interval '1 month 8 days' + make_interval(secs => keep_s) > now()
                OR to_regclass(name) IS NULL THEN
            RETURN false;
        END IF;
        low := uuid7_floor(begins);
        high := uuid7_floor(begins + interval '1 month');
        IF parent = 'job_outcomes' AND to_regclass('jobs_p' || month) IS NOT NULL
            OR EXISTS (SELECT FROM jobs WHERE id >= low AND id < high
                AND status IN ('queued', 'in_progress'))
            OR EXISTS (SELECT FROM job_outcomes WHERE job_id >= low AND job_id < high
                AND settled_at IS NULL)
            OR EXISTS (SELECT FROM batches b
                WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                AND EXISTS (SELECT FROM jobs j WHERE j.batch_id = b.id AND j.id >= low
                    AND j.id < high AND j.deleted_at IS NULL)) THEN
            RETURN false;
        END IF;
        EXECUTE format('DROP TABLE %I', name);
        RETURN true;
    END
    $$
    """,
    "REVOKE ALL ON FUNCTION drop_month(text, text, double precision) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION drop_month(text, text, double precision) TO millrace_worker",
    """
    CREATE INDEX jobs_in_batch ON jobs (batch_id, id)
        WHERE batch_id IS NOT NULL AND deleted_at IS NULL
    """,
    "DROP INDEX jobs_of_batch",
    """
    CREATE INDEX jobs_unstored ON jobs (batch_id, finished_at)
        WHERE NOT is_stored AND deleted_at IS NULL AND finished_at IS NOT NULL
    """,
    "CREATE INDEX jobs_deleted ON jobs (deleted_at) WHERE deleted_at IS NOT NULL",
    "DROP INDEX jobs_to_purge",
)

_DOWN = (
    "CREATE INDEX jobs_to_purge ON jobs (finished_at) WHERE deleted_at IS NOT NULL OR NOT is_stored",
    "DROP INDEX jobs_deleted",
    "DROP INDEX jobs_unstored",
    "CREATE INDEX jobs_of_batch ON jobs (batch_id) WHERE batch_id IS NOT NULL",
    "DROP INDEX jobs_in_batch",
    "DROP FUNCTION drop_month(text, text, double precision)",
)


def upgrade() -> None:
    """All partitions get the indexes with their parent."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """Reads every job twice too."""
    for statement in _DOWN:
        op.execute(statement)
