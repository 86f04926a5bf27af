"""Tenants, their accounts and API keys. Operator commands use the sync part, the API one lookup."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from store import api_keys
from store.ledger import CASH, EntryKind, Transfer, transfer
from store.pools import AsyncPool, DictConnection
from tasks.ids import uuid7
from tasks.limits import NO_LIMITS, Limits
from tasks.queues import ServiceTier

ALL_TIERS = tuple(ServiceTier)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant and the state of its account."""

    id: UUID
    name: str
    tiers: tuple[str, ...]
    default_tier: str
    requests_per_min: int | None  # None: no limit
    tokens_per_min: int | None
    max_batches: int | None  # None: what the installation allows
    max_batch_bytes: int | None
    currency: str
    balance_micros: int
    held_micros: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class OwnBatchQuota:
    """What a tenant may have of batches that are not over. None: what the installation allows."""

    max_batches: int | None = None
    max_bytes: int | None = None  # of their input files


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the API must know of a key and its tenant to judge a request."""

    key_id: str
    hash: bytes
    pepper_version: int
    scopes: frozenset[str]
    is_live: bool  # neither revoked nor expired, by the clock of Postgres
    tenant_id: UUID
    tiers: tuple[str, ...]
    default_tier: str
    on_disconnect: str | None  # what its jobs do when their client leaves; None: the default
    attach_retries: bool  # a library's retry without an idempotency key gets the first try's job
    limits: Limits


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key as its owner knows it: by what is no secret."""

    key_id: str
    name: str
    last4: str
    created_at: datetime
    expires_at: datetime | None
    on_disconnect: str | None
    attach_retries: bool
    state: str  # live, revoked or expired
    scopes: tuple[str, ...]  # or `all` alone


INSTALLATIONS = OwnBatchQuota()


def create_tenant(
    connection: DictConnection,
    *,
    name: str,
    credit_micros: int = 0,
    currency: str = "USD",
    tiers: Iterable[str] = ALL_TIERS,
    default_tier: str = ServiceTier.DEFAULT,
    limits: Limits = NO_LIMITS,
    batches: OwnBatchQuota = INSTALLATIONS,
) -> UUID:
    """A tenant, its account and its first credit, in one transaction. The name must be new."""
    tenant_id = uuid7()
    with connection.transaction():
        connection.execute(
            "INSERT INTO tenants (id, name, tiers, default_tier, requests_per_min, tokens_per_min,"
            " max_batches, max_batch_bytes) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                tenant_id,
                name,
                [str(tier) for tier in tiers],
                str(default_tier),
                limits.requests,
                limits.tokens,
                batches.max_batches,
                batches.max_bytes,
            ),
        )
        connection.execute(
            "INSERT INTO accounts (tenant_id, currency) VALUES (%s, %s)", (tenant_id, currency)
        )
        if credit_micros:
            transfer(connection, _first_topup(tenant_id, credit_micros))
    return tenant_id


def find_tenant(connection: DictConnection, name: str) -> UUID | None:
    """The id of the tenant with this name."""
    row = connection.execute("SELECT id FROM tenants WHERE name = %s", (name,)).fetchone()
    return row["id"] if row else None


def get_limits(connection: DictConnection, tenant_id: UUID) -> Limits:
    """A tenant's rate limits. It must exist."""
    row = connection.execute(
        "SELECT requests_per_min, tokens_per_min FROM tenants WHERE id = %s", (tenant_id,)
    ).fetchone()
    assert row is not None
    return Limits(row["requests_per_min"], row["tokens_per_min"])


def set_limits(connection: DictConnection, tenant_id: UUID, limits: Limits) -> None:
    """Change a tenant's rate limits. API processes follow within 30 s."""
    connection.execute(
        "UPDATE tenants SET requests_per_min = %s, tokens_per_min = %s WHERE id = %s",
        (limits.requests, limits.tokens, tenant_id),
    )


def get_batch_quota(connection: DictConnection, tenant_id: UUID) -> OwnBatchQuota:
    """What a tenant has of its own. It must exist."""
    row = connection.execute(
        "SELECT max_batches, max_batch_bytes FROM tenants WHERE id = %s", (tenant_id,)
    ).fetchone()
    assert row is not None
    return OwnBatchQuota(row["max_batches"], row["max_batch_bytes"])


def set_batch_quota(connection: DictConnection, tenant_id: UUID, quota: OwnBatchQuota) -> None:
    """For the batches that it makes from now on."""
    connection.execute(
        "UPDATE tenants SET max_batches = %s, max_batch_bytes = %s WHERE id = %s",
        (quota.max_batches, quota.max_bytes, tenant_id),
    )


def list_tenants(connection: DictConnection) -> list[Tenant]:
    """All tenants, oldest first."""
    rows = connection.execute(
        "SELECT t.id, t.name, t.tiers, t.default_tier, t.requests_per_min, t.tokens_per_min,"
        " t.max_batches, t.max_batch_bytes, a.currency, a.balance_micros, a.held_micros,"
        " t.created_at"
        " FROM tenants t JOIN accounts a ON a.tenant_id = t.id ORDER BY t.id"
    ).fetchall()
    return [Tenant(**row | {"tiers": tuple(row["tiers"])}) for row in rows]


def create_api_key(
    connection: DictConnection,
    *,
    tenant_id: UUID,
    name: str,
    pepper: bytes,
    scopes: Iterable[str] = (api_keys.ALL,),
    ttl: timedelta | None = None,
    on_disconnect: str | None = None,
    attach_retries: bool = True,
) -> str:
    """A new key. The returned text is the only copy there will ever be."""
    key = api_keys.generate()
    connection.execute(
        "INSERT INTO api_keys (key_id, tenant_id, name, hash, pepper_version, last4, scopes,"
        " on_disconnect, attach_retries, expires_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, now() + %s)",
        (
            key.key_id,
            tenant_id,
            name,
            api_keys.hash_key(pepper, key.text),
            api_keys.PEPPER_VERSION,
            key.last4,
            api_keys.stored_scopes(scopes),
            on_disconnect,
            attach_retries,
            ttl,
        ),
    )
    return key.text


def list_api_keys(connection: DictConnection, tenant_id: UUID) -> list[ListedKey]:
    """All keys of a tenant, oldest first, ended ones too."""
    rows = connection.execute(_LIST_API_KEYS, (tenant_id,)).fetchall()
    return [ListedKey(**row | {"scopes": api_keys.shown_scopes(row["scopes"])}) for row in rows]


def revoke_api_key(connection: DictConnection, key_id: str) -> bool:
    """End a key; the API stops honouring it within 30 s. False if it is unknown or revoked."""
    cursor = connection.execute(
        "UPDATE api_keys SET revoked_at = now() WHERE key_id = %s AND revoked_at IS NULL", (key_id,)
    )
    return cursor.rowcount == 1


def set_scopes(connection: DictConnection, key_id: str, scopes: Iterable[str]) -> bool:
    """What a key may do, from within 30 s on. False if it is unknown or revoked."""
    cursor = connection.execute(
        "UPDATE api_keys SET scopes = %s WHERE key_id = %s AND revoked_at IS NULL",
        (api_keys.stored_scopes(scopes), key_id),
    )
    return cursor.rowcount == 1


async def find_api_key(pool: AsyncPool, key_id: str) -> ApiKey | None:
    """The key with this id, live or not."""
    async with pool.connection() as connection:
        cursor = await connection.execute(_FIND_API_KEY, (key_id,))
        row = await cursor.fetchone()
    return _api_key(row) if row else None


_LIST_API_KEYS = """
    SELECT key_id, name, last4, created_at, expires_at, on_disconnect, attach_retries, scopes,
        CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired'
            ELSE 'live' END AS state
    FROM api_keys WHERE tenant_id = %s ORDER BY created_at, key_id
"""

_FIND_API_KEY = """
    SELECT k.key_id, k.hash, k.pepper_version, k.scopes, k.tenant_id, t.tiers, t.default_tier,
        k.on_disconnect, k.attach_retries, t.requests_per_min, t.tokens_per_min,
        k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()) AS is_live
    FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
    WHERE k.key_id = %s
"""


def _api_key(row: dict[str, Any]) -> ApiKey:
    limits = Limits(row.pop("requests_per_min"), row.pop("tokens_per_min"))
    return ApiKey(
        **row
        | {
            "hash": bytes(row["hash"]),
            "scopes": frozenset(row["scopes"]),
            "tiers": tuple(row["tiers"]),
            "limits": limits,
        }
    )


def _first_topup(tenant_id: UUID, amount_micros: int) -> Transfer:
    return Transfer(
        kind=EntryKind.TOPUP,
        tenant_id=tenant_id,
        amount_micros=amount_micros,
        counter_account=CASH,
        idem_key=f"topup:{tenant_id}:initial",
    )
