"""Indexes for a tenant's files of one purpose among very many of another, and for rows of files whose
contents went an hour ago, behind all those that went since.

Files are few beside jobs: seconds. Works with the previous release, whose sweeper goes by id and
finds the same rows without an index.
"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

_UP = (
    "CREATE INDEX files_of_purpose ON files (tenant_id, purpose, id) WHERE deleted_at IS NULL",
    "DROP INDEX files_purged",
    "CREATE INDEX files_purged ON files (purged_at) WHERE purged_at IS NOT NULL",
)

_DOWN = (
    "DROP INDEX files_purged",
    "CREATE INDEX files_purged ON files (id) WHERE purged_at IS NOT NULL",
    "DROP INDEX files_of_purpose",
)


def upgrade() -> None:
    """In one transaction."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """The same back."""
    for statement in _DOWN:
        op.execute(statement)
