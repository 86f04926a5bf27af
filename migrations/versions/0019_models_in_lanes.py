"""Indexes that know models, for claims: a worker passes over the jobs of a model that it can't serve,
however many there are.

Reads every job twice, and admission waits meanwhile. Works with the previous release, whose claims
and re-hinter sort a lane's queue until it is gone.
"""

from __future__ import annotations

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_UP = (
    """
    CREATE INDEX jobs_in_turn
        ON jobs (pool, service_tier, lane, tenant_id, model, deadline_at, id)
        WHERE status = 'queued'
    """,
    "DROP INDEX jobs_of_lane",
    "CREATE INDEX jobs_oldest ON jobs (pool, service_tier, lane, model, id) WHERE status = 'queued'",
    "DROP INDEX jobs_oldest_of_lane",
)

_DOWN = (
    "CREATE INDEX jobs_oldest_of_lane ON jobs (pool, service_tier, lane, id)"
    " WHERE status = 'queued'",
    "DROP INDEX jobs_oldest",
    """
    CREATE INDEX jobs_of_lane ON jobs (pool, service_tier, lane, tenant_id, deadline_at, id)
        WHERE status = 'queued'
    """,
    "DROP INDEX jobs_in_turn",
)


def upgrade() -> None:
    """All partitions get the indexes with their parent."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """Reads every job twice too."""
    for statement in _DOWN:
        op.execute(statement)
