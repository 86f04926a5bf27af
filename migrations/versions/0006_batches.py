"""Batches: files of requests that run as jobs, line by line.

Instant: new tables. Works with the previous release: it doesn't know them.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE TABLE batches (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        api_key_id text NOT NULL,
        endpoint text NOT NULL,
        completion_window text NOT NULL,
        service_tier text NOT NULL,
        input_file_id uuid NOT NULL,
        output_file_id uuid,
        error_file_id uuid,
        output_ttl_s integer,
        status text NOT NULL DEFAULT 'validating' CHECK (status IN ('validating', 'failed',
            'in_progress', 'finalizing', 'completed', 'expired', 'cancelling', 'cancelled')),
        errors jsonb NOT NULL DEFAULT '[]',
        metadata jsonb NOT NULL DEFAULT '{}',
        num_total integer NOT NULL DEFAULT 0,
        num_completed integer NOT NULL DEFAULT 0,
        num_failed integer NOT NULL DEFAULT 0,
        owner uuid,                              -- driver that works on it
        leased_until timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL,
        in_progress_at timestamptz,
        finalizing_at timestamptz,
        completed_at timestamptz,
        failed_at timestamptz,
        expired_at timestamptz,
        cancelling_at timestamptz,
        cancelled_at timestamptz
    )
    """,
    "CREATE INDEX batches_of_tenant ON batches (tenant_id, id)",
    "CREATE INDEX batches_live ON batches (id)"
    " WHERE status IN ('validating', 'in_progress', 'finalizing', 'cancelling')",
    # A line is here in full until its result is written: its file may be deleted meanwhile.
    """
    CREATE TABLE batch_lines (
        batch_id uuid NOT NULL REFERENCES batches ON DELETE CASCADE,
        number integer NOT NULL,
        custom_id text NOT NULL,
        body bytea,                              -- JSON; null once the line is over
        prefix bytea NOT NULL,                   -- lines are taken in this order
        state text NOT NULL DEFAULT 'pending' CHECK (state IN
            ('pending', 'submitted', 'refused', 'over')),
        job_id uuid,
        error jsonb,                             -- of a refused line: what its error line says
        PRIMARY KEY (batch_id, number),
        UNIQUE (batch_id, custom_id)
    )
    """,
    "CREATE INDEX batch_lines_pending ON batch_lines (batch_id, prefix, number)"
    " WHERE state = 'pending'",
    "CREATE INDEX batch_lines_live ON batch_lines (batch_id) WHERE state IN ('submitted', 'refused')",
    "GRANT SELECT, INSERT ON batches TO millrace_api",
    "GRANT UPDATE (status, cancelling_at) ON batches TO millrace_api",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON batches, batch_lines TO millrace_worker",
    "ALTER TABLE batches ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE batch_lines ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own_rows ON batches TO millrace_api USING"
    " (tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid)",
    "CREATE POLICY all_rows ON batches TO millrace_worker USING (true) WITH CHECK (true)",
    "CREATE POLICY all_rows ON batch_lines TO millrace_worker USING (true) WITH CHECK (true)",
)


def upgrade() -> None:
    """In this order: lines belong to batches."""
    for statement in _UP:
        op.execute(statement.replace(":", r"\:"))


def downgrade() -> None:
    """Jobs of lines stay; what stands in no output file yet is found by their ids alone."""
    op.execute("DROP TABLE batch_lines")
    op.execute("DROP TABLE batches")
