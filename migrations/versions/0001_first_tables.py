"""The first tables: tenants, catalog, jobs, workers, money; roles, policies, partitions.

Laid down at once because they can't be added later without a rebuild: UUIDv7 ids, range partitions
of everything that grows with jobs, the four roles, row-level security.
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQL = Path(__file__).parent / "0001_first_tables"


def upgrade() -> None:
    """Roles first: grants and policies name them."""
    for name in ("roles", "tables", "partitions", "money", "security"):
        op.execute((SQL / f"{name}.sql").read_text().replace(":", r"\:"))


def downgrade() -> None:
    """Drops everything but the roles: they belong to the cluster, not to this database."""
    op.execute((SQL / "down.sql").read_text().replace(":", r"\:"))
