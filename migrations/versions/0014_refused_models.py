"""Which of its models a worker can't serve, and why.

Instant: a column with a constant default. Works with the previous release: it writes leases without
it, and reads nothing of it.
"""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Model's name -> reason, one line that anybody may read."""
    op.execute("ALTER TABLE worker_leases ADD refused jsonb NOT NULL DEFAULT '{}'")


def downgrade() -> None:
    """Workers that run keep what they know."""
    op.execute("ALTER TABLE worker_leases DROP refused")
