"""Keys that may do all there is say so, and get what later releases add.

Theirs are the keys that hold every scope of today: until now none could be chosen at `keys create`.
One that was made before `webhooks:write` came is left as it is, since nobody asked for more: `keys
scopes` gives it. The scopes themselves stay beside the word: the release before knows them alone.
"""

from __future__ import annotations

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One statement over a small table."""
    op.execute(
        "UPDATE api_keys SET scopes = scopes || '{all}'::text[] WHERE NOT scopes @> '{all}' AND"
        " scopes @> '{infer:write,jobs:read,usage:read,webhooks:write}'"
    )


def downgrade() -> None:
    """The scopes that the word stood for have been there all the time."""
    op.execute("UPDATE api_keys SET scopes = array_remove(scopes, 'all')")
