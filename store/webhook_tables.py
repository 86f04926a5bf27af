"""The tables of webhooks, for the drift check. See store.schema."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
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
from sqlalchemy.dialects.postgresql import ARRAY

from store.schema import metadata


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


def _now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=text("now()"))


webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", ARRAY(Text), nullable=False),
    Column("name", Text, nullable=False),
    Column("is_enabled", Boolean, nullable=False, server_default=text("true")),
    Column("disabled_reason", Text),
    Column("secret", LargeBinary, nullable=False),
    Column("secret_hint", Text, nullable=False),
    Column("previous_secret", LargeBinary),
    _time("previous_until"),
    _time("failing_since"),
    _now("created_at"),
    _now("updated_at"),
    Index("webhook_endpoints_of_tenant", "tenant_id", "id"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("endpoint_id", Uuid, nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("event_id", Uuid, nullable=False),
    Column("type", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_attempt_at", DateTime(timezone=True), server_default=text("now()")),
    Column(
        "try_until",
        DateTime(timezone=True),
        nullable=False,
        server_default=text("now() + interval '24 hours'"),
    ),
    Column("last_status_code", Integer),
    Column("last_error", Text),
    _time("delivered_at"),
    _time("given_up_at"),
    _now("created_at"),
    UniqueConstraint("endpoint_id", "event_id"),
    Index(
        "webhook_deliveries_due",
        "endpoint_id",
        "next_attempt_at",
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
    Index(
        "webhook_deliveries_late",
        "try_until",
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
    Index("webhook_deliveries_listed", "endpoint_id", "created_at", "id"),
    *(
        Index(
            f"webhook_deliveries_{state}",
            "endpoint_id",
            "created_at",
            "id",
            postgresql_where=text(f"{column} IS NOT NULL"),
        )
        for state, column in (
            ("pending", "next_attempt_at"),
            ("delivered", "delivered_at"),
            ("failed", "given_up_at"),
        )
    ),
    Index("webhook_deliveries_age", "created_at"),
)
