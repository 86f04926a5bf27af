"""Rate limits over HTTP: what is told, what is refused, and what is not charged."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
import redis
from prometheus_client import generate_latest

from api.auth import Authenticator
from api.limits.counters import Counters
from api.metrics import registry
from api.services import redis_client
from cli.stack.database import DatabaseUrls
from store.pools import DictConnection, async_pool
from store.tenants import set_limits
from tasks.keys import rate_limits
from tasks.limits import NO_LIMITS, Amounts, Limits
from tests.integration.api.conftest import PEPPER, Tenant, serve_api
from tests.integration.api.producer import Producer
from tests.support.services import Services
from tests.support.waiting import until

BODY: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 100}
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": BODY,
    "/v1/responses": {"model": "tiny", "input": "hello"},
}
NAMES = {
    f"x-ratelimit-{what}-{of}"
    for what in ("limit", "remaining", "reset")
    for of in ("requests", "tokens")
}


@pytest.fixture
def api_environment(
    environment: None, catalog: None, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """For tests that start the API themselves."""
    return monkeypatch


@pytest.fixture
def limit(owner: DictConnection, tenant: Tenant) -> Any:
    """Sets the tenant's limits; the API has not seen its key yet."""

    def change(requests: int | None = None, tokens: int | None = None) -> None:
        set_limits(owner, tenant.id, Limits(requests, tokens))

    return change


def told(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("x-ratelimit")}


def remaining(answer: httpx.Response) -> tuple[int, int]:
    names = ("x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens")
    requests, tokens = (int(answer.headers[name]) for name in names)
    return requests, tokens


async def post(http: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await http.post("/v1/jobs", json=BODY, headers=headers)


def num_jobs(owner: DictConnection) -> int:
    row = owner.execute("SELECT count(*) AS n FROM jobs").fetchone()
    assert row is not None
    return int(row["n"])


def reserved(owner: DictConnection) -> int:
    """Tokens of the newest job."""
    row = owner.execute(
        "SELECT input_tokens + max_output_tokens * num_choices AS n FROM jobs ORDER BY id DESC"
    ).fetchone()
    assert row is not None
    return int(row["n"])


# What is told --------------------------------------------------------------------------------


async def test_an_admitted_job_is_told_what_is_left(
    http: httpx.AsyncClient, owner: DictConnection, limit: Any
) -> None:
    limit(requests=30, tokens=3_000)

    answers = [await post(http) for _ in range(2)]

    tokens = reserved(owner)
    assert [answer.status_code for answer in answers] == [202, 202]
    assert all(told(answer) == NAMES for answer in answers)
    headers = answers[0].headers
    assert headers["x-ratelimit-limit-requests"] == "30"
    assert headers["x-ratelimit-limit-tokens"] == "3000"
    assert headers["x-ratelimit-reset-requests"] == "2s"
    assert [remaining(answer)[0] for answer in answers] == [29, 28]
    first, second = (remaining(answer)[1] for answer in answers)
    assert first == 3_000 - tokens
    assert 3_000 - 2 * tokens <= second < first


@pytest.fixture(params=[False, True], ids=["answer", "stream"])
def stream(request: pytest.FixtureRequest, limit: Any) -> bool:
    limit(requests=30, tokens=3_000)
    return bool(request.param)


@pytest.mark.parametrize("path", DIALECTS)
async def test_answers_and_streams_of_every_dialect_are_told_what_is_left(
    http: httpx.AsyncClient, owner: DictConnection, producer: Producer, path: str, stream: bool
) -> None:
    asked = asyncio.create_task(http.post(path, json=DIALECTS[path] | {"stream": stream}))
    await until(lambda: num_jobs(owner))
    job = producer.claim()
    job.say("hi")
    producer.finish(job)
    answer = await asked

    assert answer.status_code == 200
    assert told(answer) == NAMES
    assert remaining(answer) == (29, 3_000 - reserved(owner))


async def test_only_limits_that_there_are_are_told(http: httpx.AsyncClient, limit: Any) -> None:
    limit(tokens=3_000)

    answer = await post(http)

    assert told(answer) == {name for name in NAMES if name.endswith("tokens")}


async def test_a_tenant_without_limits_is_told_nothing_and_costs_no_redis(
    api_environment: pytest.MonkeyPatch, services: Services, tenant: Tenant
) -> None:
    api_environment.setenv("MILLRACE_LIMITS_URL", f"{services.redis_url.rpartition('/')[0]}/1")
    async with (
        serve_api() as url,
        httpx.AsyncClient(base_url=url, headers=tenant.headers, trust_env=False) as http,
    ):
        answer = await post(http)

        with redis.Redis.from_url(services.redis_url) as client:
            databases = {each["db"] for each in client.client_list()}
    assert answer.status_code == 202
    assert told(answer) == set()
    assert "1" not in databases


async def test_routes_that_make_no_jobs_are_not_limited_and_tell_nothing(
    http: httpx.AsyncClient, limit: Any
) -> None:
    limit(requests=1)
    created = await post(http)

    answers = [
        await http.get("/v1/jobs"),
        await http.get(created.headers["Location"]),
        await http.post(created.headers["Location"] + "/cancel"),
        await http.get("/v1/models"),
        await http.post("/v1/estimate", json=BODY),
        await http.post("/v1/responses/input_tokens", json={"model": "tiny", "input": "a"}),
    ]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert all(told(answer) == set() for answer in answers)


# What is refused -----------------------------------------------------------------------------


async def test_one_request_too_many_is_refused_and_makes_no_job(
    http: httpx.AsyncClient, owner: DictConnection, limit: Any
) -> None:
    limit(requests=2, tokens=1_000_000)
    before = [await post(http) for _ in range(2)]

    answer = await post(http)

    error = answer.json()["error"]
    assert answer.status_code == 429
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert 0 < int(answer.headers["retry-after-ms"]) <= 30_000
    assert answer.headers["x-should-retry"] == "true"
    assert told(answer) == NAMES
    assert remaining(answer)[0] == 0
    assert remaining(answer)[1] >= remaining(before[1])[1]
    assert num_jobs(owner) == 2


async def test_tokens_are_refused_without_a_request_being_charged(
    http: httpx.AsyncClient, owner: DictConnection, limit: Any
) -> None:
    limit(requests=10, tokens=150)
    await post(http)

    refused = [await post(http) for _ in range(3)]

    assert {answer.status_code for answer in refused} == {429}
    assert {answer.json()["error"]["type"] for answer in refused} == {"tokens"}
    assert {remaining(answer)[0] for answer in refused} == {9}
    small = await http.post("/v1/jobs", json=BODY | {"max_tokens": 1})
    assert small.status_code == 202
    assert remaining(small)[0] == 8
    assert num_jobs(owner) == 2


async def test_a_request_larger_than_a_minute_is_told_never_to_come_again(
    http: httpx.AsyncClient, owner: DictConnection, limit: Any
) -> None:
    limit(requests=10, tokens=50)

    answer = await post(http)

    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "tokens"
    assert "never" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert remaining(answer) == (10, 50)
    assert num_jobs(owner) == 0


async def test_choices_count_each(http: httpx.AsyncClient, limit: Any) -> None:
    limit(tokens=300)

    answer = await http.post("/v1/jobs", json=BODY | {"n": 3})

    assert answer.status_code == 429


async def test_another_tenant_is_not_touched(
    http: httpx.AsyncClient,
    api_url: str,
    owner: DictConnection,
    other_tenant: Tenant,
    limit: Any,
) -> None:
    limit(requests=1)
    set_limits(owner, other_tenant.id, Limits(requests=1))
    await post(http)

    async with httpx.AsyncClient(base_url=api_url, headers=other_tenant.headers) as other:
        answers = [await post(http), await post(other), await post(other)]

    assert [answer.status_code for answer in answers] == [429, 202, 429]


async def test_official_client_raises_a_rate_limit_error_and_its_retry_succeeds(
    api_url: str, services: Services, tenant: Tenant, limit: Any
) -> None:
    limit(requests=30)  # one comes back each 2 s
    arguments: dict[str, Any] = {"model": "tiny", "input": "hello", "background": True}
    async with redis_client(services.redis_url) as shared:
        await Counters(shared).take(tenant.id, Limits(requests=30), Amounts(30, 0))

    async with openai.AsyncOpenAI(base_url=f"{api_url}/v1", api_key=tenant.api_key) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.with_options(max_retries=0).responses.create(**arguments)
        raw = await client.responses.with_raw_response.create(**arguments)

    assert (caught.value.type, caught.value.code) == ("requests", "rate_limit_exceeded")
    assert raw.retries_taken == 1
    assert raw.headers["x-ratelimit-limit-requests"] == "30"


# What is not charged -------------------------------------------------------------------------


async def test_a_repeated_idempotency_key_is_not_charged_and_not_refused(
    http: httpx.AsyncClient, owner: DictConnection, limit: Any
) -> None:
    limit(requests=2, tokens=1_000_000)
    first = await post(http, **{"Idempotency-Key": "k"})

    repeated = [await post(http, **{"Idempotency-Key": "k"}) for _ in range(3)]
    last = await post(http)
    when_none_is_left = await post(http, **{"Idempotency-Key": "k"})
    other_body = await http.post(
        "/v1/jobs", json=BODY | {"max_tokens": 5}, headers={"Idempotency-Key": "k"}
    )

    assert [remaining(answer)[0] for answer in (first, *repeated, last)] == [1, 1, 1, 1, 0]
    assert {answer.json()["id"] for answer in repeated} == {first.json()["id"]}
    assert when_none_is_left.status_code == 202
    assert when_none_is_left.json()["id"] == first.json()["id"]
    assert when_none_is_left.headers["Idempotency-Replayed"] == "true"
    assert remaining(when_none_is_left)[0] == 0
    assert other_body.status_code == 422
    assert num_jobs(owner) == 2


async def test_a_librarys_retry_of_an_admitted_request_is_not_charged_and_not_refused(
    http: httpx.AsyncClient, owner: DictConnection, limit: Any
) -> None:
    limit(requests=1)
    first = await post(http)

    retry = await post(http, **{"x-stainless-retry-count": "1"})

    assert retry.status_code == 202
    assert retry.json()["id"] == first.json()["id"]
    assert told(retry)
    assert num_jobs(owner) == 1


async def test_a_retry_of_a_refused_request_is_not_answered_by_an_earlier_equal_one(
    http: httpx.AsyncClient,
    services: Services,
    owner: DictConnection,
    tenant: Tenant,
    limit: Any,
) -> None:
    limit(requests=1)
    retries = {"x-stainless-retry-count": "1"}
    earlier = await post(http)
    refused = [await post(http), await post(http, **retries)]

    async with redis_client(services.redis_url) as shared:
        await Counters(shared).take(tenant.id, Limits(requests=1), Amounts(-1, 0))
    admitted = await post(http, **retries)
    lost_answer = await post(http, **retries)

    assert [answer.status_code for answer in refused] == [429, 429]
    assert admitted.json()["id"] != earlier.json()["id"]
    assert lost_answer.json()["id"] == admitted.json()["id"]
    assert num_jobs(owner) == 2


async def test_a_request_that_credit_does_not_cover_is_not_charged(
    http: httpx.AsyncClient, owner: DictConnection, limit: Any
) -> None:
    limit(requests=10, tokens=1_000)
    owner.execute("UPDATE accounts SET balance_micros = 0")

    answers = [await post(http) for _ in range(3)]

    assert {answer.json()["error"]["code"] for answer in answers} == {"insufficient_quota"}
    assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}
    assert {remaining(answer) for answer in answers} == {(10, 1_000)}


async def test_an_invalid_request_is_not_charged(http: httpx.AsyncClient, limit: Any) -> None:
    limit(requests=10)
    await http.post("/v1/jobs", json=BODY | {"temperature": 9})

    answer = await post(http)

    assert answer.headers["x-ratelimit-remaining-requests"] == "9"


# How soon, and without Redis -----------------------------------------------------------------


async def test_a_changed_limit_holds_within_30_s(
    database: DatabaseUrls, tenant: Tenant, limit: Any
) -> None:
    now = 1000.0
    async with async_pool(database.api, application_name="test", max_size=1) as pool:
        authenticator = Authenticator(pool, {1: PEPPER.encode()}, clock=lambda: now)

        async def limits() -> Limits:
            return (await authenticator.authenticate(tenant.headers["Authorization"])).limits

        before = await limits()
        limit(requests=5)
        cached = await limits()
        now += 30.0
        after = await limits()

    assert (before, cached, after) == (NO_LIMITS, NO_LIMITS, Limits(requests=5))


async def test_without_redis_the_process_itself_holds_tenants_to_their_limits(
    api_environment: pytest.MonkeyPatch, tenant: Tenant, limit: Any
) -> None:
    limit(requests=2)
    api_environment.setenv("MILLRACE_LIMITS_URL", "redis://127.0.0.1:1/0")
    async with (
        serve_api() as url,
        httpx.AsyncClient(base_url=url, headers=tenant.headers, trust_env=False) as http,
    ):
        answers = [await post(http) for _ in range(3)]
        metrics = generate_latest(registry).decode()

    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == [
        "1",
        "0",
        "0",
    ]
    assert 'millrace_api_rate_limited_total{limit="requests"}' in metrics
    assert "millrace_api_limits_counted_locally_total" in metrics


async def test_all_replicas_count_together(
    api_environment: pytest.MonkeyPatch, services: Services, tenant: Tenant, limit: Any
) -> None:
    limit(requests=3)
    async with serve_api() as first, serve_api() as second:
        answers = []
        for url in (first, second, first, second):
            async with httpx.AsyncClient(
                base_url=url, headers=tenant.headers, trust_env=False
            ) as http:
                answers.append(await post(http))

    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    with redis.Redis.from_url(services.redis_url) as client:
        assert client.exists(rate_limits(tenant.id))
