"""Settling: the order in which jobs were settled, and outcomes that can't be.

Columns are added at once: a constant default, or none for rows there are. The index reads `usage`
once, while settling waits. Works with the previous release: its rows get their number too, though
two settlers of it may commit out of turn.
"""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_UP = (
    # Failures of this outcome alone.
    "ALTER TABLE job_outcomes ADD settle_fails smallint NOT NULL DEFAULT 0, ADD settle_error text",
    "ALTER TABLE usage ADD settled_seq bigint",
    "CREATE SEQUENCE usage_settled_seq OWNED BY usage.settled_seq",
    "ALTER TABLE usage ALTER settled_seq SET DEFAULT nextval('usage_settled_seq')",
    "GRANT USAGE ON SEQUENCE usage_settled_seq TO millrace_billing",
    "CREATE INDEX usage_seq ON usage (tenant_id, settled_seq)"
    " WHERE settled_seq IS NOT NULL",
)

_DOWN = (
    "ALTER TABLE usage DROP settled_seq",
    "ALTER TABLE job_outcomes DROP settle_fails, DROP settle_error",
)


def upgrade() -> None:
    """Jobs settled before have no number."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """What was set aside is tried again."""
    for statement in _DOWN:
        op.execute(statement)
