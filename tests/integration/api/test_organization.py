"""Usage and costs in OpenAI's buckets: read by its SDK, and equal to the ledger to the micro."""

from __future__ import annotations

import csv
import io
import random
from datetime import UTC, datetime
from typing import Any, ClassVar

import httpx
import openai
import pytest
from openai.types.admin.organization.usage_completions_response import UsageCompletionsResponse
from openai.types.admin.organization.usage_costs_response import UsageCostsResponse

from store.pools import DictConnection
from tests.integration.api.conftest import Tenant
from tests.integration.api.settled import add_usage

DAY = 86_400
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
USAGE = "/v1/organization/usage/completions"
COSTS = "/v1/organization/costs"


async def test_every_bucket_is_there_and_of_openais_type(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant, other_tenant: Tenant
) -> None:
    add_usage(owner, tenant.id, at=START + 10)
    add_usage(owner, tenant.id, at=START + 2 * DAY, tier="batch")
    add_usage(owner, other_tenant.id, at=START + 10)

    answer = await http.get(USAGE, params={"start_time": START + 5, "end_time": START + 3 * DAY})

    page = UsageCompletionsResponse.model_validate(answer.json(), strict=True)
    assert [bucket.start_time - START for bucket in page.data] == [0, DAY, 2 * DAY]
    assert [len(bucket.results) for bucket in page.data] == [1, 0, 1]
    result: Any = page.data[0].results[0]
    assert (result.input_tokens, result.input_cached_tokens, result.output_tokens) == (100, 30, 50)
    assert result.num_model_requests == 1


async def test_groups_split_a_bucket(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    for user, tier in (("a", "default"), ("a", "batch"), ("b", "batch")):
        add_usage(owner, tenant.id, at=START, user=user, tier=tier)
    params: dict[str, Any] = {"start_time": START, "end_time": START + DAY}

    users = (await http.get(USAGE, params=params | {"group_by": "user_id"})).json()
    both = (await http.get(USAGE, params=params | {"group_by[]": ["user_id", "batch"]})).json()
    batch = (await http.get(USAGE, params=params | {"batch": True})).json()

    assert [(r["user_id"], r["num_model_requests"]) for r in users["data"][0]["results"]] == [
        ("a", 2),
        ("b", 1),
    ]
    assert sorted((r["user_id"], r["batch"]) for r in both["data"][0]["results"]) == [
        ("a", False),
        ("a", True),
        ("b", True),
    ]
    assert batch["data"][0]["results"][0]["num_model_requests"] == 2


async def test_pages_show_each_bucket_once(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    for hour in range(0, 50, 7):
        add_usage(owner, tenant.id, at=START + hour * 3_600)
    params: dict[str, Any] = {
        "start_time": START,
        "end_time": START + 50 * 3_600,
        "bucket_width": "1h",
        "limit": 9,
    }

    starts, num_jobs, page = [], 0, None
    while True:
        answer = (await http.get(USAGE, params=params | ({"page": page} if page else {}))).json()
        starts += [bucket["start_time"] for bucket in answer["data"]]
        num_jobs += sum(r["num_model_requests"] for b in answer["data"] for r in b["results"])
        page = answer["next_page"]
        if not answer["has_more"]:
            break

    assert starts == [START + hour * 3_600 for hour in range(50)]
    assert num_jobs == 8


async def test_line_items_add_up_to_what_was_charged(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    rng = random.Random(0)
    charged = 0
    for _ in range(200):
        total = rng.randint(1, 999)
        charged += add_usage(
            owner,
            tenant.id,
            at=START + rng.randint(0, 5 * DAY),
            input=total,
            cached=rng.randint(0, total),
            output=rng.randint(0, 999),
            tier=rng.choice(["default", "flex", "priority", "batch"]),
            amount=rng.choice([None, None, 3]),  # a charge is capped by its reservation
        )
    params: dict[str, Any] = {"start_time": START, "end_time": START + 6 * DAY}

    whole: Any = UsageCostsResponse.model_validate((await http.get(COSTS, params=params)).json())
    items = (await http.get(COSTS, params=params | {"group_by": "line_item"})).json()

    def micros(value: float) -> int:
        return round(value * 1_000_000)

    assert sum(micros(r.amount.value) for b in whole.data for r in b.results) == charged
    results = [result for bucket in items["data"] for result in bucket["results"]]
    assert sum(micros(result["amount"]["value"]) for result in results) == charged
    assert {result["line_item"] for result in results} == {
        "tiny, input",
        "tiny, cached input",
        "tiny, output",
    }
    assert {result["amount"]["currency"] for result in results} == {"usd"}


async def test_csv_cannot_run_formulas(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    add_usage(owner, tenant.id, at=START, user="=HYPERLINK(1)")

    answer = await http.get(
        USAGE,
        params={
            "start_time": START,
            "end_time": START + DAY,
            "group_by": "user_id",
            "format": "csv",
        },
    )

    [line] = csv.DictReader(io.StringIO(answer.text))
    assert line["user_id"] == "'=HYPERLINK(1)"
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.headers["content-disposition"].startswith("attachment")


async def test_openais_admin_client_reads_both(
    api_url: str, owner: DictConnection, tenant: Tenant
) -> None:
    add_usage(owner, tenant.id, at=START)
    async with openai.AsyncOpenAI(
        base_url=f"{api_url}/v1", api_key=tenant.api_key, admin_api_key=tenant.api_key
    ) as client:
        usage = await client.admin.organization.usage.completions(
            start_time=START, end_time=START + DAY, group_by=["model"]
        )
        costs = await client.admin.organization.usage.costs(start_time=START, end_time=START + DAY)

    assert usage.data[0].results[0].model == "tiny"  # type: ignore[union-attr]
    assert costs.data[0].object == "bucket"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"start_time": START, "end_time": START - DAY}, "start_time"),
        ({"start_time": START, "limit": 32}, "limit"),
        ({"start_time": START, "bucket_width": "2h"}, "bucket_width"),
        ({"start_time": START, "group_by": "colour"}, "group_by.0"),
        ({"start_time": START, "page": "page_1"}, "page"),
        ({"start_time": START, "page": "x"}, "page"),
    ],
)
async def test_bad_questions_are_refused_by_name(
    http: httpx.AsyncClient, params: dict[str, Any], param: str
) -> None:
    answer = await http.get(USAGE, params=params)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


class TestEstimates:
    BODY: ClassVar = {"model": "tiny", "prompt": "hello", "max_tokens": 40}

    async def test_without_history_there_is_only_the_worst_case(
        self, http: httpx.AsyncClient, owner: DictConnection
    ) -> None:
        estimate = (await http.post("/v1/estimate", json=self.BODY)).json()
        job = (await http.post("/v1/jobs", json=self.BODY)).json()

        reserved = owner.execute("SELECT amount_micros FROM reservations").fetchone()
        assert reserved is not None
        assert job["status"] == "queued"
        assert estimate["output_tokens"] is None
        assert estimate["tiers"]["default"]["max_micros"] == reserved["amount_micros"]
        assert estimate["max_output_tokens"] == 40

    async def test_a_tenants_own_history_goes_first(
        self, http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
    ) -> None:
        now = int(datetime.now(UTC).timestamp())
        for length in range(1, 31):
            add_usage(owner, tenant.id, at=now, output=length)

        estimate = (await http.post("/v1/estimate", json=self.BODY)).json()

        assert estimate["output_tokens"] == {
            "p50": 15,
            "p90": 27,
            "p99": 30,
            "source": "tenant",
            "samples": 30,
        }
        assert estimate["tiers"]["flex"]["p50_micros"] < estimate["tiers"]["flex"]["p90_micros"]

    async def test_others_history_counts_only_where_nobody_can_be_made_out(
        self, http: httpx.AsyncClient, owner: DictConnection, other_tenant: Tenant
    ) -> None:
        now = int(datetime.now(UTC).timestamp())
        for _ in range(60):
            add_usage(owner, other_tenant.id, at=now)

        estimate = (await http.post("/v1/estimate", json=self.BODY)).json()

        assert estimate["output_tokens"] is None

    async def test_a_chat_request_is_estimated_as_such(self, http: httpx.AsyncClient) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "n": 2}
        answer = await http.post(
            "/v1/estimate", json={**body, "endpoint": "/v1/chat/completions", "max_tokens": 10}
        )
        refused = await http.post("/v1/estimate", json={**body, "endpoint": "/v1/x"})

        assert answer.json()["max_output_tokens"] == 20
        assert refused.json()["error"]["param"] == "endpoint"
