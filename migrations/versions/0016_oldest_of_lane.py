"""An index for tickets whose tenant has nothing left: they serve the oldest job of their lane.

Reads every job once, and admission waits meanwhile: a second for each million. Works with the
previous release, which doesn't look for that order.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """All partitions get the index with their parent."""
    op.execute(
        "CREATE INDEX jobs_oldest_of_lane ON jobs (pool, service_tier, lane, id)"
        " WHERE status = 'queued'"
    )


def downgrade() -> None:
    """Claims of surplus tickets find nothing then."""
    op.execute("DROP INDEX jobs_oldest_of_lane")
