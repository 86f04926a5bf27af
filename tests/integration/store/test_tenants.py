"""Tenants and keys as operators make, list and change them; of one at a time."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from store import tenants
from store.api_keys import ALL, ALL_SCOPES
from store.pools import DictConnection
from store.tenants import ApiKey, ListedKey, OwnBatchQuota
from tasks.limits import NO_LIMITS, Limits
from tests.integration.store.conftest import AsApi
from tests.support.rows import Rows

TIERS = ("priority", "default", "flex", "batch")
PEPPER = b"pepper"


@pytest.fixture
def owner(rows: Rows) -> DictConnection:
    return rows.connection


def _key(owner: DictConnection, tenant: UUID, name: str = "key") -> str:
    """Its id."""
    text = tenants.create_api_key(owner, tenant_id=tenant, name=name, pepper=PEPPER)
    return text.removeprefix("mlr_live_").partition("_")[0]


def test_tenants_are_listed_with_what_they_were_made_with(owner: DictConnection) -> None:
    plain = tenants.create_tenant(owner, name="plain")
    own = tenants.create_tenant(
        owner,
        name="own",
        credit_micros=7,
        currency="EUR",
        tiers=["flex", "default"],
        default_tier="flex",
        limits=Limits(3, 4),
        batches=OwnBatchQuota(5, 6),
    )

    one, two = tenants.list_tenants(owner)

    assert (one.id, one.name, one.tiers, one.default_tier) == (plain, "plain", TIERS, "default")
    assert (one.requests_per_min, one.tokens_per_min) == (None, None)
    assert (one.max_batches, one.max_batch_bytes) == (None, None)
    assert (one.currency, one.balance_micros, one.held_micros) == ("USD", 0, 0)
    assert (two.id, two.name, two.tiers, two.default_tier) == (
        own,
        "own",
        ("flex", "default"),
        "flex",
    )
    assert (two.requests_per_min, two.tokens_per_min) == (3, 4)
    assert (two.max_batches, two.max_batch_bytes) == (5, 6)
    assert (two.currency, two.balance_micros, two.held_micros) == ("EUR", 7, 0)
    assert [tenants.find_tenant(owner, name) for name in ("plain", "own", "none")] == [
        plain,
        own,
        None,
    ]


def test_limits_and_quotas_are_changed_of_one_tenant(owner: DictConnection, rows: Rows) -> None:
    tenant, other = rows.tenant(), rows.tenant()

    tenants.set_limits(owner, tenant, Limits(1, 2))
    tenants.set_batch_quota(owner, tenant, OwnBatchQuota(3, 4))

    assert tenants.get_limits(owner, tenant) == Limits(1, 2)
    assert tenants.get_batch_quota(owner, tenant) == OwnBatchQuota(3, 4)
    assert tenants.get_limits(owner, other) == NO_LIMITS
    assert tenants.get_batch_quota(owner, other) == OwnBatchQuota()


def test_keys_are_listed_oldest_first_with_their_state(owner: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    _key(owner, rows.tenant())
    with owner.transaction():  # now() stands still
        live, expired, young, revoked = (
            _key(owner, tenant, name) for name in ("live", "expired", "young", "revoked")
        )
        for key, left in ((expired, "0 s"), (young, "1 s"), (revoked, "-1 s")):
            owner.execute(
                "UPDATE api_keys SET expires_at = now() + %s::interval WHERE key_id = %s",
                (left, key),
            )
        owner.execute(
            "UPDATE api_keys SET created_at = now() - interval '1 day' WHERE key_id = %s",
            (revoked,),
        )
        assert tenants.revoke_api_key(owner, revoked)
        listed = tenants.list_api_keys(owner, tenant)

    states = {live: "live", expired: "expired", young: "live", revoked: "revoked"}
    assert [key.key_id for key in listed] == [revoked, *sorted((live, expired, young))]
    assert {key.key_id: key.state for key in listed} == states


def test_a_key_is_listed_by_what_is_no_secret(owner: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    text = tenants.create_api_key(
        owner,
        tenant_id=tenant,
        name="mine",
        pepper=PEPPER,
        ttl=timedelta(hours=1),
        on_disconnect="cancel",
        attach_retries=False,
    )

    [listed] = tenants.list_api_keys(owner, tenant)

    assert listed == ListedKey(
        key_id=listed.key_id,
        name="mine",
        last4=text[-4:],
        created_at=listed.created_at,
        expires_at=listed.created_at + timedelta(hours=1),
        on_disconnect="cancel",
        attach_retries=False,
        state="live",
        scopes=(ALL,),
    )


def test_a_key_is_revoked_once_and_no_other_with_it(owner: DictConnection, rows: Rows) -> None:
    tenant = rows.tenant()
    first, second = (_key(owner, tenant) for _ in range(2))

    assert tenants.revoke_api_key(owner, first)
    revoked = "SELECT key_id, revoked_at FROM api_keys WHERE revoked_at IS NOT NULL"
    before = rows.one(revoked)
    assert not tenants.revoke_api_key(owner, first)
    assert not tenants.revoke_api_key(owner, uuid4().hex[:12])

    assert before["key_id"] == first
    assert rows.one(revoked) == before
    assert {key.key_id: key.state for key in tenants.list_api_keys(owner, tenant)} == {
        first: "revoked",
        second: "live",
    }


def _found(as_api: AsApi, key: str) -> ApiKey | None:
    return as_api(lambda pool: tenants.find_api_key(pool, key))


def test_a_key_is_found_with_what_its_tenant_may(
    as_api: AsApi, owner: DictConnection, rows: Rows
) -> None:
    tenant = tenants.create_tenant(
        owner, name="own", tiers=["flex"], default_tier="flex", limits=Limits(3, 4)
    )
    key = _key(owner, tenant)
    _key(owner, rows.tenant())

    found = _found(as_api, key)

    assert found == ApiKey(
        key_id=key,
        hash=found.hash if found else b"",
        pepper_version=1,
        scopes=frozenset({ALL, *ALL_SCOPES}),
        is_live=True,
        tenant_id=tenant,
        tiers=("flex",),
        default_tier="flex",
        on_disconnect=None,
        attach_retries=True,
        limits=Limits(3, 4),
    )
    assert _found(as_api, "none") is None


@pytest.mark.parametrize(
    ("column", "moment", "is_live"),
    [
        ("expires_at", "now", False),
        ("expires_at", "2999-01-01", True),
        ("revoked_at", "2026-01-01", False),
    ],
)
def test_a_key_lives_until_it_expires_or_is_revoked(  # noqa: PLR0917
    as_api: AsApi, owner: DictConnection, rows: Rows, column: str, moment: str, is_live: bool
) -> None:
    key = _key(owner, rows.tenant())
    owner.execute(f"UPDATE api_keys SET {column} = %s".encode(), (moment,))

    found = _found(as_api, key)

    assert found is not None
    assert found.is_live is is_live
