"""Files: what tenants upload, and the output files that Millrace writes.

Instant: new tables. Works with the previous release: it doesn't know them.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_UP = (
    # A row is a whole file, or an output file that still grows by whole parts. Deleted and expired
    # files keep their rows; `purged_at` says that their contents are gone too.
    """
    CREATE TABLE files (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        purpose text NOT NULL CHECK (purpose IN ('batch', 'batch_output', 'user_data')),
        filename text NOT NULL,
        num_bytes bigint NOT NULL CHECK (num_bytes >= 0),
        num_parts integer NOT NULL CHECK (num_parts >= 0),
        sha256 bytea,
        status text NOT NULL CHECK (status IN ('uploaded', 'processed', 'error')),
        status_details text,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        deleted_at timestamptz,
        purged_at timestamptz,
        CHECK (purged_at IS NULL OR deleted_at IS NOT NULL)
    )
    """,
    "CREATE INDEX files_of_tenant ON files (tenant_id, id) WHERE deleted_at IS NULL",
    "CREATE INDEX files_expiry ON files (expires_at) WHERE deleted_at IS NULL",
    "CREATE INDEX files_unpurged ON files (id) WHERE deleted_at IS NOT NULL AND purged_at IS NULL",
    # The contents of a file are its parts in the order of their numbers, each one object.
    """
    CREATE TABLE file_parts (
        file_id uuid REFERENCES files ON DELETE CASCADE,
        number integer CHECK (number >= 1),
        tenant_id uuid NOT NULL,
        object_key text NOT NULL,
        num_bytes bigint NOT NULL CHECK (num_bytes > 0),
        PRIMARY KEY (file_id, number)
    )
    """,
    # An upload is known here before its first byte is stored, so that whatever is left of one that
    # never became a file can be found without listing all objects. It holds part of the quota.
    """
    CREATE TABLE file_uploads (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants,
        reserved_bytes bigint NOT NULL CHECK (reserved_bytes > 0),
        started_at timestamptz NOT NULL DEFAULT now(),
        abandoned_at timestamptz
    )
    """,
    "CREATE INDEX file_uploads_of_tenant ON file_uploads (tenant_id)",
    "GRANT SELECT, INSERT ON files, file_parts, file_uploads TO millrace_api",
    "GRANT UPDATE (deleted_at) ON files TO millrace_api",
    "GRANT UPDATE (abandoned_at), DELETE ON file_uploads TO millrace_api",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON files, file_parts, file_uploads TO millrace_worker",
)

_TABLES = ("files", "file_parts", "file_uploads")


def upgrade() -> None:
    """Tables, then who may see which rows."""
    for statement in _UP:
        op.execute(statement)
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY own_rows ON {table} TO millrace_api USING"
            " (tenant_id = nullif(current_setting('app.tenant_id', true), '')\\:\\:uuid)"
        )
        op.execute(
            f"CREATE POLICY all_rows ON {table} TO millrace_worker USING (true) WITH CHECK (true)"
        )


def downgrade() -> None:
    """The contents stay where they are: delete the folder or bucket of MILLRACE_FILES_URL."""
    op.execute("DROP TABLE file_uploads, file_parts, files")
