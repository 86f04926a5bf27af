"""Structured output: the grammar of a job, as every attempt compiles it.

Instant, and works with the previous release: it writes no grammar and reads none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """All partitions get the column with their parent."""
    op.add_column("job_payloads", sa.Column("grammar", sa.Text()))


def downgrade() -> None:
    """Queued jobs lose their grammars; drain the queues first."""
    op.drop_column("job_payloads", "grammar")
