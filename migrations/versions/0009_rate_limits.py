"""Rate limits of tenants.

Instant: columns without a default, and an index on rows that there are none of yet. Works with the
previous release: it doesn't know them.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_UP = (
    # Null: no limit.
    """
    ALTER TABLE tenants
        ADD requests_per_min integer CHECK (requests_per_min > 0),
        ADD tokens_per_min integer CHECK (tokens_per_min > 0)
    """,
    # Each settling asks which of its tenants have one.
    "CREATE INDEX tenants_with_token_limit ON tenants (id) WHERE tokens_per_min IS NOT NULL",
)

_DOWN = (
    "DROP INDEX tenants_with_token_limit",
    "ALTER TABLE tenants DROP requests_per_min, DROP tokens_per_min",
)


def upgrade() -> None:
    """In this order: the index is on a new column."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """All limits are lost."""
    for statement in _DOWN:
        op.execute(statement)
