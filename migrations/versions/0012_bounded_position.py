"""A place in the queue is counted up to a bound, so that asking for it costs the same at any backlog.

Instant: one function. Works with the previous release, which shows the bound as the place.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_COUNTED = """
CREATE OR REPLACE FUNCTION queue_position(job_id uuid) RETURNS bigint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
BEGIN ATOMIC
    SELECT (
        SELECT count(*) FROM (
            SELECT FROM jobs ahead WHERE ahead.status = 'queued' AND ahead.pool = mine.pool
                AND ahead.service_tier = mine.service_tier AND ahead.id < mine.id
            {bound}
        ) nearest
    )
    FROM jobs mine WHERE mine.id = queue_position.job_id AND mine.status = 'queued'
        AND mine.tenant_id = nullif(current_setting('app.tenant_id', true), '')::uuid;
END
"""


def upgrade() -> None:
    """The bound is store.jobs.MAX_POSITION."""
    op.execute(_COUNTED.format(bound="ORDER BY ahead.id LIMIT 1000"))


def downgrade() -> None:
    """Count all again."""
    op.execute(_COUNTED.format(bound=""))
