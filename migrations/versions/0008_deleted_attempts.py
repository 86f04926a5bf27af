"""A deleted response leaves no text in its attempts either.

Instant. Works with the previous release: a grant more.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_COLUMNS = "checkpoint_text, checkpoint_token_ids, checkpoint_splits"


def upgrade() -> None:
    """The API empties the checkpoints of a tenant's own job."""
    op.execute(f"GRANT UPDATE ({_COLUMNS}) ON job_attempts TO millrace_api")


def downgrade() -> None:
    """Deleting a response fails in the newer release."""
    op.execute(f"REVOKE UPDATE ({_COLUMNS}) ON job_attempts FROM millrace_api")
