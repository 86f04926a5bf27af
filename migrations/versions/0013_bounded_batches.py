"""Batches in turns: quotas, reading in slices, counters on the row, and lines that become jobs by the
statement that makes the job.

Instant but for one sum over the jobs of batches that are over. Works with the previous release: its
drivers lease by the same columns, begin a file anew and find their lines submitted already.
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_LIVE = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"

_UP = (
    """
    ALTER TABLE batches
        ADD input_bytes bigint NOT NULL DEFAULT 0,      -- of its file: what the quota counts
        ADD read_bytes bigint NOT NULL DEFAULT 0,       -- of its file, so far
        ADD read_lines integer NOT NULL DEFAULT 0,
        ADD next_step_at timestamptz NOT NULL DEFAULT now(),
        ADD num_pauses integer NOT NULL DEFAULT 0,      -- steps in a row with nothing to do
        ADD num_tries integer NOT NULL DEFAULT 0,       -- steps in a row that failed
        ADD waits_for jsonb,                            -- {code, message} of what holds it up
        ADD input_tokens bigint NOT NULL DEFAULT 0,     -- of the lines that are over
        ADD cached_tokens bigint NOT NULL DEFAULT 0,
        ADD output_tokens bigint NOT NULL DEFAULT 0
    """,
    f"CREATE INDEX batches_due ON batches (next_step_at) WHERE {_LIVE}",
    f"CREATE INDEX batches_live_of_tenant ON batches (tenant_id) WHERE {_LIVE}",
    """
    ALTER TABLE batch_lines
        ADD num_tries integer NOT NULL DEFAULT 0,
        ADD try_at timestamptz                          -- not before
    """,
    # Null: the installation's default.
    """
    ALTER TABLE tenants
        ADD max_batches integer CHECK (max_batches >= 0),
        ADD max_batch_bytes bigint CHECK (max_batch_bytes >= 0)
    """,
    """
    UPDATE batches b SET input_tokens = coalesce(u.input_tokens, 0),
        cached_tokens = coalesce(u.cached_tokens, 0), output_tokens = coalesce(u.output_tokens, 0)
    FROM (
        SELECT batch_id, sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens,
            sum(output_tokens) AS output_tokens
        FROM jobs WHERE batch_id IS NOT NULL AND finished_at IS NOT NULL GROUP BY batch_id
    ) u
    WHERE b.id = u.batch_id
    """,
    """
    UPDATE files SET expires_at = now() + interval '30 days'
    WHERE purpose = 'batch_output' AND expires_at IS NULL AND deleted_at IS NULL
    """,
    # A line has its job by the statement that makes the job, or the job is not made: a driver that was
    # overtaken, by another or by a cancel, starts nothing that stands in no file.
    """
    CREATE FUNCTION submit_batch_line() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    BEGIN
        UPDATE batch_lines SET state = 'submitted', job_id = NEW.id
        WHERE batch_id = NEW.batch_id AND state = 'pending'
            AND number = substring(NEW.idempotency_key FROM '[0-9]+$')::integer;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the line is not pending any more' USING ERRCODE = 'MR409';
        END IF;
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER submit_batch_line AFTER INSERT ON jobs FOR EACH ROW
        WHEN (NEW.batch_id IS NOT NULL) EXECUTE FUNCTION submit_batch_line()
    """,
    "GRANT UPDATE (next_step_at) ON batches TO millrace_api",
)

_DOWN = (
    "DROP TRIGGER submit_batch_line ON jobs",
    "DROP FUNCTION submit_batch_line()",
    "ALTER TABLE tenants DROP max_batches, DROP max_batch_bytes",
    "ALTER TABLE batch_lines DROP num_tries, DROP try_at",
    "DROP INDEX batches_due",
    "DROP INDEX batches_live_of_tenant",
    "REVOKE UPDATE (next_step_at) ON batches FROM millrace_api",
    """
    ALTER TABLE batches DROP input_bytes, DROP read_bytes, DROP read_lines, DROP next_step_at,
        DROP num_pauses, DROP num_tries, DROP waits_for, DROP input_tokens, DROP cached_tokens,
        DROP output_tokens
    """,
)


def upgrade() -> None:
    """In this order: indexes are on new columns."""
    for statement in _UP:
        op.execute(statement.replace(":", r"\:"))


def downgrade() -> None:
    """Quotas of tenants are lost. A batch whose file is half read is read anew."""
    for statement in _DOWN:
        op.execute(statement)
