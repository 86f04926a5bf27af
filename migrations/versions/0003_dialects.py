"""Dialects: what a job must remember to be shown as the client that made it expects.

Instant: constant defaults, and indexes on what is empty or small at this age. Works with the
previous release: it leaves the new columns at their defaults, which say what it does.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UP = (
    """
    ALTER TABLE jobs
        ADD dialect text NOT NULL DEFAULT 'job'
            CHECK (dialect IN ('job', 'chat', 'completion', 'response')),
        ADD num_choices smallint NOT NULL DEFAULT 1 CHECK (num_choices >= 1),
        ADD tool_format text,
        ADD is_background boolean NOT NULL DEFAULT false,
        ADD on_disconnect text NOT NULL DEFAULT 'continue'
            CHECK (on_disconnect IN ('continue', 'cancel')),
        ADD batch_id uuid,
        ADD deleted_at timestamptz
    """,
    # A retry without an idempotency key looks its first try up by what it asks for.
    "CREATE INDEX jobs_request_hash ON jobs USING hash (request_hash)",
    "CREATE INDEX jobs_of_batch ON jobs (batch_id) WHERE batch_id IS NOT NULL",
    # Where the choices of a checkpoint end: for each [tokens, characters, finish_reason or null]; null
    # for one choice, whose end needs no saying.
    "ALTER TABLE job_attempts ADD checkpoint_splits jsonb",
    """
    ALTER TABLE api_keys
        ADD on_disconnect text CHECK (on_disconnect IN ('continue', 'cancel')),
        ADD attach_retries boolean NOT NULL DEFAULT true
    """,
    "GRANT UPDATE (deleted_at) ON jobs TO millrace_api",
    # A deleted job's prompt and output go with it.
    "GRANT DELETE ON job_payloads, job_results TO millrace_api",
)

_DOWN = (
    "REVOKE DELETE ON job_payloads, job_results FROM millrace_api",
    "ALTER TABLE api_keys DROP on_disconnect, DROP attach_retries",
    "ALTER TABLE job_attempts DROP checkpoint_splits",
    "DROP INDEX jobs_of_batch",
    "DROP INDEX jobs_request_hash",
    """
    ALTER TABLE jobs DROP dialect, DROP num_choices, DROP tool_format, DROP is_background,
        DROP on_disconnect, DROP batch_id, DROP deleted_at
    """,
)


def upgrade() -> None:
    """All partitions get columns and indexes with their parent."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """Choices beyond the first lose their checkpoints; drain the queues first."""
    for statement in _DOWN:
        op.execute(statement)
