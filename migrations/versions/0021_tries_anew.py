"""Tries of a line are counted anew once it has a job: from then on they are those to write its result.

One function, replaced. Works with the previous release, which never looks at the tries of a line
that has a job.
"""

from __future__ import annotations

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

_FUNCTION = """
CREATE OR REPLACE FUNCTION submit_batch_line() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE batch_lines SET state = 'submitted', job_id = NEW.id{tries}
    WHERE batch_id = NEW.batch_id AND state = 'pending'
        AND number = substring(NEW.idempotency_key FROM '[0-9]+$')::integer;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the line is not pending any more' USING ERRCODE = 'MR409';
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    """In one transaction."""
    op.execute(_FUNCTION.format(tries=", num_tries = 0, try_at = NULL"))


def downgrade() -> None:
    """The same back."""
    op.execute(_FUNCTION.format(tries=""))
