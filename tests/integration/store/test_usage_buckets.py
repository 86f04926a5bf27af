"""Costs by line item: what they say and what the ledger holds is the same money."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.usage import settle_jobs
from store.admission import FrozenPrices
from store.usage_buckets import BucketQuery, cost_buckets, usage_buckets
from store.usage_reports import UsageReport, usage_report
from tests.integration.store.conftest import AsApi
from tests.support.roles import Connections
from tests.support.rows import Rows, frozen_prices

TIERS = ("priority", "default", "flex", "batch")
MILLION = 1_000_000
VERSIONS = itertools.count(1)

COUNTS = st.integers(0, 2_000)
MICROS = st.sampled_from([0, 1, 3, 300_000, 999_999, 1_000_000]) | st.integers(0, 10**9)
JOBS = st.lists(
    st.fixed_dictionaries(
        {
            "input_tokens": COUNTS,
            "cached": st.fractions(0, 1),
            "output_tokens": COUNTS,
            "max_output_tokens": COUNTS,  # fewer than produced: the charge is cut short
            "payer": st.sampled_from(["tenant", "tenant", "tenant", "platform", "nobody"]),
            "tier": st.sampled_from(TIERS),
            "price": st.integers(0, 2),
        }
    ),
    max_size=12,
)


def _today(**fields: Any) -> BucketQuery:
    now = datetime.now(UTC)
    start = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    return BucketQuery(start=start, end=now + timedelta(days=1), width=timedelta(days=1), **fields)


def _price_book(rows: Rows, prices: FrozenPrices) -> FrozenPrices:
    """A book of its own, with one price for all tiers."""
    version = next(VERSIONS)
    rows.connection.execute(
        "INSERT INTO price_books (version, currency, sha256) VALUES (%s, 'USD', %s)",
        (version, version.to_bytes(8)),
    )
    rows.connection.execute(
        "INSERT INTO prices SELECT %s, 'demo', tier, %s, %s, %s FROM unnest(%s::text[]) tier",
        (
            version,
            prices.input_micros,
            prices.cached_micros,
            prices.output_micros,
            list(TIERS),
        ),
    )
    return replace(prices, version=version)


def _settle(roles: Connections, rows: Rows, jobs: list[dict[str, Any]], books: Any) -> UUID:
    tenant = rows.tenant()
    for job in jobs:
        fields = {name: job[name] for name in ("input_tokens", "output_tokens", "payer", "tier")}
        rows.ended_job(
            tenant,
            cached_tokens=int(job["cached"] * job["input_tokens"]),
            max_output_tokens=job["max_output_tokens"],
            prices=books[job["price"]],
            **fields,
        )
    settle_jobs(roles.billing)
    return tenant


def _charged(rows: Rows, tenant: UUID) -> int:
    """By the ledger."""
    row = rows.one(
        "SELECT coalesce(sum(amount_micros), 0)::bigint AS sum FROM ledger_entries"
        " WHERE tenant_id = %s AND kind = 'usage'",
        tenant,
    )
    return int(row["sum"])


def test_line_items_whole_costs_native_report_and_ledger_are_one_sum(
    roles: Connections, rows: Rows, as_api: AsApi
) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(JOBS, st.lists(st.builds(frozen_prices, MICROS, MICROS, MICROS), min_size=3, max_size=3))
    def check(jobs: list[dict[str, Any]], prices: list[FrozenPrices]) -> None:
        tenant = _settle(roles, rows, jobs, [_price_book(rows, line) for line in prices])
        query = _today()

        whole = as_api(lambda pool: cost_buckets(pool, tenant, query))
        items = as_api(
            lambda pool: cost_buckets(pool, tenant, replace(query, group_by=["line_item"]))
        )
        usage = as_api(lambda pool: usage_buckets(pool, tenant, query))
        native = as_api(lambda pool: usage_report(pool, tenant, start=query.start, end=query.end))

        charged = _charged(rows, tenant)
        assert sum(row["amount_micros"] for row in whole) == charged
        assert sum(row["amount_micros"] for row in items) == charged
        assert all(row["amount_micros"] >= 0 for row in items)
        assert sum(line["amount_micros"] for line in native.lines) == charged
        _assert_same_tokens(usage, native, jobs)

    check()


def _assert_same_tokens(
    usage: list[dict[str, Any]], native: UsageReport, jobs: list[dict[str, Any]]
) -> None:
    sums = Counter(num_jobs=len(jobs))
    for job in jobs:
        sums["input_tokens"] += job["input_tokens"]
        sums["cached_tokens"] += int(job["cached"] * job["input_tokens"])
        sums["output_tokens"] += job["output_tokens"]
    names = {
        "num_jobs": "num_model_requests",
        "input_tokens": "input_tokens",
        "cached_tokens": "input_cached_tokens",
        "output_tokens": "output_tokens",
    }
    for ours, openais in names.items():
        assert sum(row[openais] for row in usage) == sums[ours]
        assert sum(line[ours] for line in native.lines) == sums[ours]


def test_each_line_item_is_within_a_micro_of_its_exact_cost(
    roles: Connections, rows: Rows, as_api: AsApi
) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(COUNTS, st.fractions(0, 1), COUNTS, st.builds(frozen_prices, MICROS, MICROS, MICROS))
    def check(total: int, share: Fraction, output: int, prices: FrozenPrices) -> None:
        cached = int(share * total)
        book = _price_book(rows, prices)
        tenant = rows.tenant()
        rows.ended_job(
            tenant,
            input_tokens=total,
            cached_tokens=cached,
            output_tokens=output,
            max_output_tokens=output,
            prices=book,
        )
        settle_jobs(roles.billing)

        found = as_api(lambda pool: cost_buckets(pool, tenant, _today(group_by=["line_item"])))

        exact = {
            "demo, input": (total - cached, prices.input_micros),
            "demo, cached input": (cached, prices.cached_micros),
            "demo, output": (output, prices.output_micros),
        }
        for row in found:
            quantity, price = exact[row["line_item"]]
            assert row["quantity"] == quantity > 0
            assert abs(row["amount_micros"] - Fraction(quantity * price, MILLION)) < 1
        if _charged(rows, tenant):
            assert {row["line_item"] for row in found} == {
                name for name, (quantity, _) in exact.items() if quantity
            }

    check()


def test_a_charge_whose_price_line_is_gone_is_still_in_the_sum(
    roles: Connections, rows: Rows, as_api: AsApi
) -> None:
    tenant = rows.tenant()
    rows.ended_job(tenant)
    settle_jobs(roles.billing)

    items = as_api(lambda pool: cost_buckets(pool, tenant, _today(group_by=["line_item"])))

    assert sum(row["amount_micros"] for row in items) == _charged(rows, tenant) > 0


def test_line_items_can_be_picked_without_grouping_by_them(
    roles: Connections, rows: Rows, as_api: AsApi
) -> None:
    book = _price_book(rows, frozen_prices(MILLION, MILLION, MILLION))
    tenant = rows.tenant()
    rows.ended_job(tenant, input_tokens=10, cached_tokens=3, output_tokens=5, prices=book)
    settle_jobs(roles.billing)

    picked = as_api(
        lambda pool: cost_buckets(
            pool, tenant, _today(line_items=["demo, input", "demo, output", "other, input"])
        )
    )

    assert [row["amount_micros"] for row in picked] == [7 + 5]


def test_what_cost_nothing_is_no_line_item(roles: Connections, rows: Rows, as_api: AsApi) -> None:
    book = _price_book(rows, frozen_prices(MILLION, MILLION, MILLION))
    tenant = rows.tenant()
    fields = {"input_tokens": 10, "cached_tokens": 3, "output_tokens": 5, "prices": book}
    for payer in ("tenant", "platform"):
        rows.ended_job(tenant, payer=payer, **fields)
    settle_jobs(roles.billing)

    items = as_api(lambda pool: cost_buckets(pool, tenant, _today(group_by=["line_item"])))

    quantities = {row["line_item"]: row["quantity"] for row in items}
    assert quantities == {"demo, input": 7, "demo, cached input": 3, "demo, output": 5}


START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
_ADD = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at)
VALUES (gen_random_uuid(), %s, 'key', %s, %s, 'completed', 'tenant', 10, 3, 5, 1, %s, 'USD', %s)
"""


def _add(rows: Rows, tenant: UUID, *, tier: str, amount: int, at: datetime) -> None:
    rows.connection.execute(_ADD, (tenant, f"{tier}-model", tier, amount, at))


def _of_two_hours(rows: Rows) -> tuple[UUID, BucketQuery]:
    """A tenant's jobs in two hours, and around them."""
    tenant = rows.tenant()
    moment = timedelta(microseconds=1)
    for at in (START - moment, START + 2 * HOUR):  # of other hours
        _add(rows, tenant, tier="flex", amount=1_000, at=at)
    _add(rows, tenant, tier="batch", amount=4, at=START)
    _add(rows, tenant, tier="default", amount=8, at=START + HOUR - moment)
    _add(rows, tenant, tier="default", amount=16, at=START + HOUR)
    _add(rows, tenant, tier="flex", amount=0, at=START + 2 * HOUR - moment)
    return tenant, BucketQuery(start=START, end=START + 2 * HOUR, width=HOUR)


def test_a_bucket_has_what_ended_from_its_first_moment_to_before_the_next(
    rows: Rows, as_api: AsApi
) -> None:
    tenant, query = _of_two_hours(rows)

    usage = as_api(lambda pool: usage_buckets(pool, tenant, query))
    costs = as_api(lambda pool: cost_buckets(pool, tenant, query))

    sums = {
        "num_model_requests": 2,
        "input_tokens": 20,
        "input_cached_tokens": 6,
        "output_tokens": 10,
    }
    assert usage == [{"bucket": START + number * HOUR, **sums} for number in range(2)]
    assert costs == [
        {"bucket": START, "currency": "USD", "amount_micros": 12},
        {"bucket": START + HOUR, "currency": "USD", "amount_micros": 16},
    ]


def test_buckets_are_split_and_narrowed_by_what_is_asked_for(rows: Rows, as_api: AsApi) -> None:
    tenant, query = _of_two_hours(rows)

    def found(**fields: Any) -> list[tuple[int, str]]:
        asked = replace(query, group_by=["service_tier"], **fields)
        used = as_api(lambda pool: usage_buckets(pool, tenant, asked))
        return [((row["bucket"] - START) // HOUR, row["service_tier"]) for row in used]

    batch, others = [(0, "batch")], [(0, "default"), (1, "default"), (1, "flex")]
    assert found() == [*batch, *others]
    assert found(is_batch=True) == batch
    assert found(is_batch=False) == others
    assert found(filters={"service_tier": ["batch", "flex"]}) == [*batch, (1, "flex")]
    only = {"service_tier": ["batch", "flex"], "model": ["flex-model"]}
    assert found(filters=only) == [(1, "flex")]
    assert found(filters={"user_id": ["ann"]}) == []


def test_costs_by_tier_leave_out_what_was_free(rows: Rows, as_api: AsApi) -> None:
    tenant, query = _of_two_hours(rows)
    asked = replace(query, group_by=["service_tier"])

    costs = as_api(lambda pool: cost_buckets(pool, tenant, asked))

    found = [(row["bucket"], row["service_tier"], row["amount_micros"]) for row in costs]
    assert found == [
        (START, "batch", 4),
        (START, "default", 8),
        (START + HOUR, "default", 16),
    ]
