"""The tables of the migrations, as `alembic check` compares them with the database.

Columns, keys and indexes stand here too; checks, partitions, policies and triggers there alone.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()


def sqlalchemy_url(url: str) -> str:
    """The same URL for SQLAlchemy with psycopg 3."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return "postgresql+psycopg://" + url.removeprefix(scheme)
    return url


def _time(name: str, *, nullable: bool = False, default: bool = False) -> Column[object]:
    server_default = text("now()") if default else None
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=server_default)


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _count(name: str, *, nullable: bool = False, default: str | None = None) -> Column[int]:
    return Column(name, Integer, nullable=nullable, server_default=default)


def _micros(name: str, *, nullable: bool = False, default: str | None = None) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable, server_default=default)


def _prices() -> tuple[Column[int], ...]:
    names = ("input_price", "cached_price", "output_price")
    return (_count("price_version"), *(_micros(name) for name in names))


tenants = Table(
    "tenants",
    metadata,
    Column("id", Uuid, primary_key=True),
    _text("name"),
    Column("tiers", ARRAY(Text), nullable=False),
    _text("default_tier"),
    _time("created_at", default=True),
    _count("requests_per_min", nullable=True),
    _count("tokens_per_min", nullable=True),
    _count("max_batches", nullable=True),
    Column("max_batch_bytes", BigInteger),
    UniqueConstraint("name"),
    Index(
        "tenants_with_token_limit",
        "id",
        postgresql_where=text("tokens_per_min IS NOT NULL"),
    ),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    _text("name"),
    Column("hash", LargeBinary, nullable=False),
    Column("pepper_version", SmallInteger, nullable=False),
    _text("last4"),
    Column("scopes", ARRAY(Text), nullable=False),
    _time("created_at", default=True),
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
    _text("on_disconnect", nullable=True),
    Column("attach_retries", Boolean, nullable=False, server_default=text("true")),
    Index("api_keys_tenant", "tenant_id"),
)

models = Table(
    "models",
    metadata,
    Column("name", Text, primary_key=True),
    _text("pool"),
    _text("source"),
    _text("revision", nullable=True),
    _text("dtype"),
    _count("context_length"),
    _count("max_output_tokens"),
    _text("status"),
    Column("capabilities", ARRAY(Text), nullable=False),
    _time("created_at", default=True),
    _time("updated_at", default=True),
)

model_assets = Table(
    "model_assets",
    metadata,
    Column("model_name", Text, ForeignKey("models.name", ondelete="CASCADE"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("sha256", LargeBinary, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

price_books = Table(
    "price_books",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    _text("currency"),
    Column("sha256", LargeBinary, nullable=False),
    _time("created_at", default=True),
    UniqueConstraint("sha256"),
)

prices = Table(
    "prices",
    metadata,
    Column("version", Integer, ForeignKey("price_books.version"), primary_key=True),
    Column("model_name", Text, primary_key=True),
    Column("service_tier", Text, primary_key=True),
    _micros("input_micros"),
    _micros("cached_micros"),
    _micros("output_micros"),
)

worker_leases = Table(
    "worker_leases",
    metadata,
    Column("worker_id", Uuid, primary_key=True),
    _text("hostname"),
    _count("pid"),
    _text("pool"),
    _text("device"),
    Column("models", ARRAY(Text), nullable=False),
    Column("refused", JSONB, nullable=False, server_default=text("'{}'")),
    _count("slots"),
    _count("num_running", default="0"),
    Column("draining", Boolean, nullable=False, server_default=text("false")),
    _time("started_at", default=True),
    _time("beat_at", default=True),
    _time("expires_at"),
)

_LANE = ("pool", "service_tier", "lane")
_TURN = (*_LANE, "tenant_id", "model", "deadline_at", "id")
_QUEUED = text("status = 'queued'")
_IN_BATCH = text("batch_id IS NOT NULL AND deleted_at IS NULL")
_UNSTORED = text("NOT is_stored AND deleted_at IS NULL AND finished_at IS NOT NULL")
_LISTED = text("deleted_at IS NULL AND (is_stored OR finished_at IS NULL)")

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    _text("api_key_id"),
    _text("end_user", nullable=True),
    _text("model"),
    _text("model_requested"),
    _text("pool"),
    _text("service_tier"),
    Column("lane", SmallInteger, nullable=False),
    _text("status"),
    _text("reason", nullable=True),
    _count("attempt", default="0"),
    Column("fail_count", SmallInteger, nullable=False, server_default="0"),
    Column("max_fails", SmallInteger, nullable=False),
    Column("worker_id", Uuid),
    _time("run_after", default=True),
    _time("deadline_at"),
    _time("hinted_at", nullable=True),
    _count("hint_count", default="0"),
    _time("cancel_requested_at", nullable=True),
    _text("cancel_by", nullable=True),
    _count("input_tokens"),
    _count("max_output_tokens"),
    _count("cached_tokens", nullable=True),
    _count("output_tokens", nullable=True),
    *_prices(),
    _text("currency"),
    _micros("cost_micros", nullable=True),
    _text("error_code", nullable=True),
    _text("error_message", nullable=True),
    Column("error_retryable", Boolean),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'")),
    Column("request_hash", LargeBinary, nullable=False),
    _text("idempotency_key", nullable=True),
    _time("created_at", default=True),
    _time("started_at", nullable=True),
    _time("finished_at", nullable=True),
    Column("dialect", Text, nullable=False, server_default=text("'job'")),
    Column("num_choices", SmallInteger, nullable=False, server_default="1"),
    _text("tool_format", nullable=True),
    Column("is_background", Boolean, nullable=False, server_default=text("false")),
    Column("on_disconnect", Text, nullable=False, server_default=text("'continue'")),
    Column("batch_id", Uuid),
    _time("deleted_at", nullable=True),
    Column("is_stored", Boolean, nullable=False, server_default=text("true")),
    Index("jobs_in_turn", *_TURN, postgresql_where=_QUEUED),
    Index("jobs_oldest", *_LANE, "model", "id", postgresql_where=_QUEUED),
    Index(
        "jobs_cancelled",
        "id",
        postgresql_where=text("status = 'queued' AND cancel_requested_at IS NOT NULL"),
    ),
    Index("jobs_queued", "pool", "service_tier", "id", postgresql_where=_QUEUED),
    Index("jobs_running", "worker_id", postgresql_where=text("status = 'in_progress'")),
    Index(
        "jobs_deadline",
        "deadline_at",
        postgresql_where=text("status IN ('queued', 'in_progress')"),
    ),
    Index("jobs_of_tenant", "tenant_id", "id"),
    Index("jobs_listed", "tenant_id", "status", "id", postgresql_where=_LISTED),
    Index("jobs_first_try", "api_key_id", "request_hash", "id"),
    Index("jobs_in_batch", "batch_id", "id", postgresql_where=_IN_BATCH),
    Index("jobs_unstored", "batch_id", "finished_at", postgresql_where=_UNSTORED),
    Index("jobs_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    postgresql_partition_by="RANGE (id)",
)

job_payloads = Table(
    "job_payloads",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("request", JSONB, nullable=False),
    Column("prompt_token_ids", LargeBinary, nullable=False),
    Column("sampling", JSONB, nullable=False),
    _text("grammar", nullable=True),
    postgresql_partition_by="RANGE (job_id)",
)

job_results = Table(
    "job_results",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("output", JSONB, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("event_log", LargeBinary),
    _time("created_at", default=True),
    Index("job_results_with_log", "job_id", postgresql_where=text("event_log IS NOT NULL")),
    postgresql_partition_by="RANGE (job_id)",
)

job_attempts = Table(
    "job_attempts",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    Column("worker_id", Uuid, nullable=False),
    _time("started_at", default=True),
    _time("ended_at", nullable=True),
    _text("outcome", nullable=True),
    _micros("checkpoint_seq", default="0"),
    Column("checkpoint_token_ids", LargeBinary, nullable=False, server_default=text("''::bytea")),
    Column("checkpoint_text", Text, nullable=False, server_default=text("''")),
    Column("checkpoint_splits", JSONB),
    _count("output_tokens", default="0"),
    postgresql_partition_by="RANGE (job_id)",
)

job_outcomes = Table(
    "job_outcomes",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    _text("api_key_id"),
    _text("model"),
    _text("service_tier"),
    _text("status"),
    _text("reason", nullable=True),
    _text("payer"),
    _count("attempt"),
    _count("input_tokens"),
    _count("cached_tokens"),
    _count("output_tokens"),
    *_prices(),
    _text("currency"),
    _time("created_at", default=True),
    _time("settled_at", nullable=True),
    _text("end_user", nullable=True),
    Column("settle_fails", SmallInteger, nullable=False, server_default=text("0")),
    _text("settle_error", nullable=True),
    Index("job_outcomes_unsettled", "job_id", postgresql_where=text("settled_at IS NULL")),
    postgresql_partition_by="RANGE (job_id)",
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_hash", LargeBinary, nullable=False),
    Column("job_id", Uuid, nullable=False),
    _time("created_at", default=True),
    Index("idempotency_keys_age", "created_at"),
)

retention_runs = Table(
    "retention_runs",
    metadata,
    Column("kind", Text, primary_key=True),
    _time("ended_at", default=True),
    Column("num_removed", BigInteger, nullable=False),
    _text("error", nullable=True),
)

accounts = Table(
    "accounts",
    metadata,
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), primary_key=True),
    _text("currency"),
    _micros("balance_micros", default="0"),
    _micros("held_micros", default="0"),
    _micros("credit_limit_micros", default="0"),
)

reservations = Table(
    "reservations",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, ForeignKey("accounts.tenant_id"), nullable=False),
    _micros("amount_micros"),
    Column("state", Text, nullable=False, server_default=text("'held'")),
    _micros("settled_micros", nullable=True),
    _time("created_at", default=True),
    _time("resolved_at", nullable=True),
    Index("reservations_held", "created_at", postgresql_where=text("state = 'held'")),
)

usage = Table(
    "usage",
    metadata,
    Column("job_id", Uuid, primary_key=True),
    Column("tenant_id", Uuid, nullable=False),
    _text("api_key_id"),
    _text("model"),
    _text("service_tier"),
    _text("status"),
    _text("payer"),
    _count("input_tokens"),
    _count("cached_tokens"),
    _count("output_tokens"),
    _count("price_version"),
    _micros("amount_micros"),
    _text("currency"),
    _time("created_at"),
    _text("end_user", nullable=True),
    Column("settled_seq", BigInteger, server_default=text("nextval('usage_settled_seq')")),
    Index("usage_of_tenant", "tenant_id", "created_at"),
    Index(
        "usage_seq", "tenant_id", "settled_seq", postgresql_where=text("settled_seq IS NOT NULL")
    ),
)

ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _text("kind"),
    Column("tenant_id", Uuid, ForeignKey("tenants.id"), nullable=False),
    Column("job_id", Uuid),
    _text("debit_account"),
    _text("credit_account"),
    _micros("amount_micros"),
    _text("currency"),
    _count("price_version", nullable=True),
    _text("idem_key"),
    _time("created_at", default=True),
    UniqueConstraint("idem_key"),
    Index(
        "ledger_one_usage_per_job", "job_id", unique=True, postgresql_where=text("kind = 'usage'")
    ),
    Index("ledger_of_tenant", "tenant_id", "id"),
)
