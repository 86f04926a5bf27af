"""What jobs reserved of rate limits and didn't use goes back when they are settled, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import redis

from billing import giving_back, metrics
from billing.giving_back import TokenReturns
from billing.usage import settle_jobs
from store.rate_limits import UnusedTokens, unused_tokens
from store.tenants import set_limits
from tasks.keys import rate_limits
from tasks.limits import (
    PERIOD_S,
    TAKE_SCRIPT,
    Amounts,
    Limits,
    Standing,
    parse_answer,
    take_arguments,
)
from tests.support.roles import Connections
from tests.support.rows import Rows
from tests.support.services import Services
from tests.support.waiting import wait_until

LIMITS = Limits(requests=60, tokens=60)  # one a second


@pytest.fixture
def client(services: Services) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(services.redis_url) as client:
        yield client


@pytest.fixture(autouse=True)
def _own_thread(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_REDIS_URL", services.redis_url)
    monkeypatch.setattr(giving_back, "_returns", TokenReturns())


@pytest.fixture
def tenant(roles: Connections, rows: Rows) -> UUID:
    tenant = rows.tenant()
    set_limits(roles.owner, tenant, LIMITS)
    return tenant


def take(client: redis.Redis, tenant: UUID, amounts: Amounts) -> Standing:
    reply = client.eval(TAKE_SCRIPT, 1, rate_limits(tenant), *take_arguments(LIMITS, amounts))
    return parse_answer(LIMITS, reply).standing


def test_what_a_job_did_not_use_goes_back_once(
    roles: Connections, rows: Rows, client: redis.Redis, tenant: UUID
) -> None:
    take(client, tenant, Amounts(1, 60))
    job = rows.ended_job(tenant, input_tokens=20, max_output_tokens=40, output_tokens=10)
    before = metrics.TOKENS_GIVEN_BACK._value.get()

    num_settled = [settle_jobs(roles.billing, [job]) for _ in range(2)]
    wait_until(lambda: metrics.TOKENS_GIVEN_BACK._value.get() > before)
    left = take(client, tenant, Amounts(0, 0)).used

    assert num_settled == [1, 0]
    assert metrics.TOKENS_GIVEN_BACK._value.get() == before + 30
    assert 15 < left.tokens <= 30  # some came back by themselves meanwhile
    assert left.requests <= 1


def test_unused_is_what_was_reserved_less_what_is_paid_for(
    roles: Connections, rows: Rows, tenant: UUID
) -> None:
    counts: dict[str, Any] = {"input_tokens": 100, "max_output_tokens": 50, "output_tokens": 10}
    paid = rows.ended_job(tenant, **counts)
    choices = rows.ended_job(tenant, num_choices=3, **counts)
    lost = rows.ended_job(tenant, payer="platform", **counts)
    line = rows.ended_job(tenant, **counts)
    roles.owner.execute("UPDATE jobs SET batch_id = gen_random_uuid() WHERE id = %s", (line,))

    unused = [
        {each.tenant_id: each.num_tokens for each in unused_tokens(roles.billing, jobs)}
        for jobs in ([paid], [choices], [lost], [line], [paid, choices, lost, line])
    ]

    assert unused == [
        {tenant: 40},
        {tenant: 140},
        {tenant: 150},
        {},
        {tenant: 330},
    ]


def test_what_is_used_up_leaves_nothing(roles: Connections, rows: Rows, tenant: UUID) -> None:
    jobs = [
        rows.ended_job(tenant, input_tokens=100, max_output_tokens=50, output_tokens=output_tokens)
        for output_tokens in (50, 49)
    ]

    assert unused_tokens(roles.billing, jobs[:1]) == []
    assert unused_tokens(roles.billing, jobs) == [UnusedTokens(tenant, LIMITS, 1)]


def test_tenants_without_a_limit_of_tokens_cost_no_thread(
    roles: Connections, rows: Rows, tenant: UUID
) -> None:
    set_limits(roles.owner, tenant, Limits(requests=5))
    rows.ended_job(tenant)
    rows.ended_job(rows.tenant())
    before = threading.active_count()

    assert settle_jobs(roles.billing) == 2
    assert threading.active_count() == before


def test_settling_does_not_wait_for_redis(
    roles: Connections, rows: Rows, tenant: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_LIMITS_URL", "redis://127.0.0.1:1/0")
    before = metrics.TOKENS_NOT_GIVEN_BACK._value.get()
    rows.ended_job(tenant, max_output_tokens=50, output_tokens=10)

    assert settle_jobs(roles.billing) == 1

    wait_until(lambda: metrics.TOKENS_NOT_GIVEN_BACK._value.get() == before + 40)


def test_what_has_come_back_by_itself_is_not_given_back_once_more(
    client: redis.Redis, tenant: UUID
) -> None:
    take(client, tenant, Amounts(1, 60))
    lost, given = metrics.TOKENS_NOT_GIVEN_BACK._value.get, metrics.TOKENS_GIVEN_BACK._value.get
    num_lost, num_given, num_threads = lost(), given(), _num_threads()
    times = [1_000.0, 1_000.0 + PERIOD_S + 1, 2_000.0, 2_000.0 + PERIOD_S - 1]
    returns = TokenReturns(iter(times).__next__)

    returns.put(UnusedTokens(tenant, LIMITS, 7))
    wait_until(lambda: lost() == num_lost + 7)
    returns.put(UnusedTokens(tenant, LIMITS, 30))
    wait_until(lambda: given() > num_given)

    assert (lost(), given()) == (num_lost + 7, num_given + 30)
    assert _num_threads() == num_threads + 1


def _num_threads() -> int:
    return sum(thread.name == giving_back.THREAD for thread in threading.enumerate())


def test_what_can_not_be_looked_up_stays_settled(
    roles: Connections, rows: Rows, tenant: UUID
) -> None:
    rows.ended_job(tenant)
    roles.owner.execute("REVOKE SELECT ON jobs FROM millrace_billing")

    assert settle_jobs(roles.billing) == 1


def test_what_can_not_be_given_back_holds_up_no_other(client: redis.Redis, tenant: UUID) -> None:
    take(client, tenant, Amounts(1, 60))
    returns, before = TokenReturns(), metrics.TOKENS_GIVEN_BACK._value.get()

    returns.put(UnusedTokens(tenant, None, 5))  # type: ignore[arg-type]  # breaks the thread's step
    returns.put(UnusedTokens(tenant, LIMITS, 30))

    wait_until(lambda: metrics.TOKENS_GIVEN_BACK._value.get() == before + 30)
