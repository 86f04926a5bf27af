"""The tables of files, for the drift check. See store.schema."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)

from store.schema import metadata


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=text("now()"))


files = Table(
    "files",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("num_parts", Integer, nullable=False),
    Column("sha256", LargeBinary),
    Column("status", Text, nullable=False),
    Column("status_details", Text),
    _now("created_at"),
    _time("expires_at"),
    _time("deleted_at"),
    _time("purged_at"),
    Index("files_of_tenant", "tenant_id", "id", postgresql_where=text("deleted_at IS NULL")),
    Index(
        "files_of_purpose",
        "tenant_id",
        "purpose",
        "id",
        postgresql_where=text("deleted_at IS NULL"),
    ),
    Index("files_expiry", "expires_at", postgresql_where=text("deleted_at IS NULL")),
    Index(
        "files_unpurged",
        "id",
        postgresql_where=text("deleted_at IS NOT NULL AND purged_at IS NULL"),
    ),
    Index("files_purged", "purged_at", postgresql_where=text("purged_at IS NOT NULL")),
)

file_parts = Table(
    "file_parts",
    metadata,
    Column("file_id", Uuid, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
)

file_uploads = Table(
    "file_uploads",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("reserved_bytes", BigInteger, nullable=False),
    _now("started_at"),
    _time("abandoned_at"),
    Index("file_uploads_of_tenant", "tenant_id"),
)
