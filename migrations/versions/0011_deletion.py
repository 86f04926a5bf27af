"""Deletion of all dialects' jobs and of batches, jobs that are not stored, and months that are over.

Columns with constant defaults, and an index that will be empty: building it reads the jobs once, some
seconds for ten million of them, in which none can be written. Works with the previous release: it deletes responses as before and drops
no month.
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_CONTENT = "request_hash, metadata, end_user, idempotency_key, error_message"

_UP = (
    "ALTER TABLE jobs ADD is_stored boolean NOT NULL DEFAULT true",
    # What is to be removed: jobs that were deleted, and those that were not to be stored.
    "CREATE INDEX jobs_to_purge ON jobs (finished_at) WHERE deleted_at IS NOT NULL OR NOT is_stored",
    "ALTER TABLE batches ADD deleted_at timestamptz",
    "CREATE INDEX batches_deleted ON batches (id) WHERE deleted_at IS NOT NULL",
    # Which kinds retention looked after, when, and how it went: one row a kind.
    """
    CREATE TABLE retention_runs (
        kind text PRIMARY KEY,
        ended_at timestamptz NOT NULL DEFAULT now(),
        num_removed bigint NOT NULL,             -- rows, or months
        error text                               -- the kind of failure; null if there was none
    )
    """,
    "GRANT SELECT, INSERT, UPDATE ON retention_runs TO millrace_worker",
    f"GRANT UPDATE ({_CONTENT}) ON jobs TO millrace_api",
    "GRANT DELETE ON idempotency_keys TO millrace_api",
    "GRANT UPDATE (deleted_at) ON batches TO millrace_api",
    "GRANT DELETE ON jobs, job_payloads, job_results, job_attempts, job_outcomes TO millrace_worker",
    "GRANT SELECT ON jobs_default, job_outcomes_default TO millrace_worker",
    "REVOKE EXECUTE ON FUNCTION drop_partitions(integer) FROM millrace_worker",
    "DROP FUNCTION drop_partitions(integer)",
    # Drops the oldest month of a table that nothing in it is needed of, and says which; null if there
    # is none. One table a call, so that the parent is locked for the moment of one drop. DETACH
    # CONCURRENTLY is not to be had beside a default partition; the drop gives up instead before the
    # queries behind it have waited long, and is tried again.
    #
    # Ids are in the order of creation, so a month's jobs were over eight days after it ended: no deadline
    # is longer than a batch's seven. What is open still, or not settled, or of a batch that goes on, keeps all
    # tables of its month. Outcomes stay until their jobs are gone: a job that is over has one.
    """
    CREATE FUNCTION drop_oldest_month(parent text, keep_s double precision) RETURNS text
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
        SET lock_timeout = '200ms' AS $$
    DECLARE
        part record;
        low uuid;
        high uuid;
    BEGIN
        IF parent <> ALL (ARRAY['jobs', 'job_payloads', 'job_results', 'job_attempts',
                'job_outcomes']) OR keep_s IS NULL OR keep_s < 86400 THEN
            RAISE EXCEPTION 'no table of months, or kept for less than a day';
        END IF;
        PERFORM set_config('timezone', 'UTC', true);
        FOR part IN
            SELECT c.relname AS name, right(c.relname, 6) AS month,
                to_date(right(c.relname, 6), 'YYYYMM')::timestamptz AS begins
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = parent::regclass AND c.relname ~ ('^' || parent || '_p[0-9]{6}$')
            ORDER BY 1
        LOOP
            EXIT WHEN part.begins + interval '1 month 8 days' + make_interval(secs => keep_s) > now();
            low := uuid7_floor(part.begins);
            high := uuid7_floor(part.begins + interval '1 month');
            CONTINUE WHEN parent = 'job_outcomes' AND to_regclass('jobs_p' || part.month) IS NOT NULL;
            CONTINUE WHEN EXISTS (SELECT FROM jobs WHERE id >= low AND id < high
                AND status IN ('queued', 'in_progress'));
            CONTINUE WHEN EXISTS (SELECT FROM job_outcomes WHERE job_id >= low AND job_id < high
                AND settled_at IS NULL);
            CONTINUE WHEN EXISTS (SELECT FROM batches b
                WHERE b.status IN ('validating', 'in_progress', 'finalizing', 'cancelling')
                AND EXISTS (SELECT FROM jobs j WHERE j.batch_id = b.id AND j.id >= low
                    AND j.id < high));
            EXECUTE format('DROP TABLE %I', part.name);
            RETURN part.name;
        END LOOP;
        RETURN NULL;
    END
    $$
    """,
    "REVOKE ALL ON FUNCTION drop_oldest_month(text, double precision) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION drop_oldest_month(text, double precision) TO millrace_worker",
)

_DOWN = (
    "DROP FUNCTION drop_oldest_month(text, double precision)",
    # Nobody called it.
    """
    CREATE FUNCTION drop_partitions(keep_months integer) RETURNS integer
        LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp RETURN 0
    """,
    "REVOKE ALL ON FUNCTION drop_partitions(integer) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION drop_partitions(integer) TO millrace_worker",
    "REVOKE SELECT ON jobs_default, job_outcomes_default FROM millrace_worker",
    "REVOKE DELETE ON jobs, job_payloads, job_results, job_attempts, job_outcomes"
    " FROM millrace_worker",
    "REVOKE UPDATE (deleted_at) ON batches FROM millrace_api",
    "REVOKE DELETE ON idempotency_keys FROM millrace_api",
    "REVOKE UPDATE (request_hash, metadata, end_user, idempotency_key) ON jobs FROM millrace_api",
    "DROP TABLE retention_runs",
    "DROP INDEX batches_deleted",
    "ALTER TABLE batches DROP deleted_at",
    "DROP INDEX jobs_to_purge",
    "ALTER TABLE jobs DROP is_stored",
)


def upgrade() -> None:
    """All partitions get column and index with their parent."""
    for statement in _UP:
        op.execute(statement.replace(":", r"\:"))


def downgrade() -> None:
    """Deleted jobs stay hidden; what is left of those not to be stored is shown."""
    for statement in _DOWN:
        op.execute(statement)
