"""The tables of batches, for the drift check. See store/schema.py."""

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
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from store.schema import metadata


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _count(name: str, kind: type[Integer]) -> Column[object]:
    return Column(name, kind, nullable=False, server_default="0")


_LIVE = text("status IN ('validating', 'in_progress', 'finalizing', 'cancelling')")

batches = Table(
    "batches",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("api_key_id", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("service_tier", Text, nullable=False),
    Column("input_file_id", Uuid, nullable=False),
    Column("output_file_id", Uuid),
    Column("error_file_id", Uuid),
    Column("output_ttl_s", Integer),
    Column("status", Text, nullable=False, server_default=text("'validating'")),
    Column("errors", JSONB, nullable=False, server_default=text("'[]'")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("num_total", Integer, nullable=False, server_default="0"),
    Column("num_completed", Integer, nullable=False, server_default="0"),
    Column("num_failed", Integer, nullable=False, server_default="0"),
    Column("owner", Uuid),
    _time("leased_until"),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    _time("in_progress_at"),
    _time("finalizing_at"),
    _time("completed_at"),
    _time("failed_at"),
    _time("expired_at"),
    _time("cancelling_at"),
    _time("cancelled_at"),
    _time("deleted_at"),
    Index("batches_deleted", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    _count("input_bytes", BigInteger),
    _count("read_bytes", BigInteger),
    _count("read_lines", Integer),
    Column("next_step_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    _count("num_pauses", Integer),
    _count("num_tries", Integer),
    Column("waits_for", JSONB),
    _count("input_tokens", BigInteger),
    _count("cached_tokens", BigInteger),
    _count("output_tokens", BigInteger),
    Index("batches_of_tenant", "tenant_id", "id"),
    Index("batches_live", "id", postgresql_where=_LIVE),  # of drivers of the release before
    Index("batches_due", "next_step_at", postgresql_where=_LIVE),
    Index("batches_live_of_tenant", "tenant_id", postgresql_where=_LIVE),
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", Uuid, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("custom_id", Text, nullable=False),
    Column("body", LargeBinary),
    Column("prefix", LargeBinary, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    Column("job_id", Uuid),
    Column("error", JSONB),
    _count("num_tries", Integer),
    _time("try_at"),
    UniqueConstraint("batch_id", "custom_id"),
    Index(
        "batch_lines_pending",
        "batch_id",
        "prefix",
        "number",
        postgresql_where=text("state = 'pending'"),
    ),
    Index(
        "batch_lines_live",
        "batch_id",
        postgresql_where=text("state IN ('submitted', 'refused')"),
    ),
)
