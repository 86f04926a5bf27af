"""Indexes for those who look for something that is rare among very many: a tenant's jobs of one status,
the first try of a request that is often sent, deliveries of one state, files whose contents are gone.

Reads every job twice, and admission waits meanwhile: two seconds for each million. Works with the
previous release.
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_STATES = {"pending": "next_attempt_at", "delivered": "delivered_at", "failed": "given_up_at"}

_UP = (
    """
    CREATE INDEX jobs_listed ON jobs (tenant_id, status, id)
        WHERE deleted_at IS NULL AND (is_stored OR finished_at IS NULL)
    """,
    # A hash would find the same request of everybody, and of all time.
    "CREATE INDEX jobs_first_try ON jobs (api_key_id, request_hash, id)",
    "DROP INDEX jobs_request_hash",
    # A delivery is in one of them.
    *(
        f"CREATE INDEX webhook_deliveries_{state} ON webhook_deliveries (endpoint_id, created_at, id)"
        f" WHERE {column} IS NOT NULL"
        for state, column in _STATES.items()
    ),
    """
    CREATE INDEX webhook_deliveries_late ON webhook_deliveries (try_until)
        WHERE next_attempt_at IS NOT NULL
    """,
    "CREATE INDEX files_purged ON files (id) WHERE purged_at IS NOT NULL",
)

_DOWN = (
    "DROP INDEX files_purged",
    "DROP INDEX webhook_deliveries_late",
    *(f"DROP INDEX webhook_deliveries_{state}" for state in _STATES),
    "CREATE INDEX jobs_request_hash ON jobs USING hash (request_hash)",
    "DROP INDEX jobs_first_try",
    "DROP INDEX jobs_listed",
)


def upgrade() -> None:
    """All partitions get the indexes with their parent."""
    for statement in _UP:
        op.execute(statement)


def downgrade() -> None:
    """Reads every job twice too."""
    for statement in _DOWN:
        op.execute(statement)
