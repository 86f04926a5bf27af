"""Indexes for those who look at the queue: tickets by lane, and jobs that were cancelled in it.

Reads every job once, and admission waits meanwhile: a second for each million. Works with the
previous release, whose claims then sort their tier's queue.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UP = (
    # Whose turn it is in a lane: the claim by ticket, and the re-hinter, which walks its tenants.
    """
    CREATE INDEX jobs_of_lane ON jobs (pool, service_tier, lane, tenant_id, deadline_at, id)
        WHERE status = 'queued'
    """,
    "DROP INDEX jobs_ticket",
    """
    CREATE INDEX jobs_cancelled ON jobs (id)
        WHERE status = 'queued' AND cancel_requested_at IS NOT NULL
    """,
)

_DOWN = (
    "DROP INDEX jobs_cancelled",
    """
    CREATE INDEX jobs_ticket ON jobs (tenant_id, pool, service_tier, deadline_at, id)
        WHERE status = 'queued'
    """,
    "DROP INDEX jobs_of_lane",
)


def upgrade() -> None:
    """All partitions get the indexes with their parent."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """Reads every job once too."""
    for statement in _DOWN:
        op.execute(statement)
