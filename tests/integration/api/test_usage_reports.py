"""What OpenAI's client asks of the usage routes, field by field, and what else they promise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

import httpx
import openai
import pytest
from openai.types.admin.organization.usage_completions_response import (
    DataResultOrganizationUsageCompletionsResult as UsageResult,
)
from openai.types.admin.organization.usage_completions_response import UsageCompletionsResponse
from openai.types.admin.organization.usage_costs_response import (
    DataResultOrganizationCostsResult as CostsResult,
)
from openai.types.admin.organization.usage_costs_response import UsageCostsResponse

from api.schemas.usage import BucketPageShown, CostResultShown, UsageResultShown
from store import usage_buckets
from store.api_keys import Scope
from store.pools import DictConnection
from store.tenants import create_api_key
from tests.compat.strict_types import assert_fits
from tests.integration.api.conftest import PEPPER, Tenant
from tests.integration.api.settled import add_usage

DAY = 86_400
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
USAGE = "/v1/organization/usage/completions"
COSTS = "/v1/organization/costs"
ONE_DAY: dict[str, Any] = {"start_time": START, "end_time": START + DAY}
USAGE_GROUPS = ("project_id", "user_id", "api_key_id", "model", "batch", "service_tier")


@pytest.fixture
async def admin(api_url: str, tenant: Tenant) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client, with our key as its admin key."""
    async with openai.AsyncOpenAI(
        base_url=f"{api_url}/v1", api_key="unused", admin_api_key=tenant.api_key, max_retries=0
    ) as client:
        yield client


def _results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [result for bucket in answer.json()["data"] for result in bucket["results"]]


async def test_answers_have_every_field_of_openais_types(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    add_usage(owner, tenant.id, at=START, user="ann")

    usage = await http.get(USAGE, params=ONE_DAY | {"group_by": list(USAGE_GROUPS)})
    costs = await http.get(COSTS, params=ONE_DAY | {"group_by": ["line_item", "project_id"]})

    assert_fits(UsageCompletionsResponse, usage.json())
    assert_fits(UsageCostsResponse, costs.json())
    assert all(set(result) == set(UsageResult.model_fields) for result in _results(usage))
    assert all(set(result) == set(CostsResult.model_fields) for result in _results(costs))
    BucketPageShown[UsageResultShown].model_validate(usage.json())
    BucketPageShown[CostResultShown].model_validate(costs.json())


async def test_results_say_whose_and_what(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    add_usage(owner, tenant.id, at=START, user="ann", tier="batch", key="k1")

    [used] = _results(await http.get(USAGE, params=ONE_DAY | {"group_by": list(USAGE_GROUPS)}))
    [whole] = _results(await http.get(USAGE, params=ONE_DAY))
    items = _results(await http.get(COSTS, params=ONE_DAY | {"group_by": "line_item"}))

    assert {name: used[name] for name in USAGE_GROUPS} == {
        "project_id": f"proj_{tenant.id.hex}",
        "user_id": "ann",
        "api_key_id": "k1",
        "model": "tiny",
        "batch": True,
        "service_tier": "batch",
    }
    assert [whole[name] for name in USAGE_GROUPS] == [None] * 6
    assert (whole["input_tokens"], whole["input_uncached_tokens"]) == (100, 70)
    assert {item["line_item"]: (item["quantity"], item["amount"]) for item in items} == {
        "tiny, input": (70, {"value": 0.000035, "currency": "usd"}),
        "tiny, cached input": (30, {"value": 0.000002, "currency": "usd"}),
        "tiny, output": (50, {"value": 0.00005, "currency": "usd"}),
    }
    assert {item["quantity_unit"] for item in items} == {"tokens"}


async def test_any_grouping_splits_the_same_sums(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    for number in range(24):
        add_usage(
            owner,
            tenant.id,
            at=START + number,
            output=number,
            user=[None, "ann", "bob"][number % 3],
            key=f"k{number % 2}",
            tier=["default", "batch", "flex", "priority"][number % 4],
        )

    groupings = [g for size in range(7) for g in combinations(USAGE_GROUPS, size)]
    for groups in groupings:
        results = _results(await http.get(USAGE, params=ONE_DAY | {"group_by": list(groups)}))

        keys = [tuple(result[name] for name in groups) for result in results]
        assert len(set(keys)) == len(keys), groups
        assert sum(result["output_tokens"] for result in results) == sum(range(24)), groups
        assert sum(result["num_model_requests"] for result in results) == 24, groups


class TestOpenAIsClient:
    """It writes lists as `models[]=..`."""

    async def test_filters_keep_what_they_name(
        self, admin: openai.AsyncOpenAI, owner: DictConnection, tenant: Tenant
    ) -> None:
        jobs = (("ann", "k1", "batch"), ("ann", "k2", "flex"), ("bob", "k1", "flex"))
        for user, key, tier in jobs:
            add_usage(owner, tenant.id, at=START, user=user, key=key, tier=tier)
        ask = admin.admin.organization.usage.completions
        project = f"proj_{tenant.id.hex}"

        async def count(**filters: Any) -> int:
            page = await ask(start_time=START, end_time=START + DAY, **filters)
            results: list[Any] = page.data[0].results
            return sum(result.num_model_requests for result in results)

        assert await count() == 3
        assert await count(models=["tiny"]) == 3
        assert await count(models=["other"]) == 0
        assert await count(user_ids=["ann", "eve"]) == 2
        assert await count(api_key_ids=["k1"], user_ids=["ann"]) == 1
        assert await count(batch=True) == 1
        assert await count(batch=False) == 2
        assert await count(project_ids=[project, "proj_x"]) == 3
        assert await count(project_ids=["proj_x"]) == 0

    async def test_costs_can_be_filtered_and_grouped(
        self, admin: openai.AsyncOpenAI, owner: DictConnection, tenant: Tenant
    ) -> None:
        add_usage(owner, tenant.id, at=START, user="ann", key="k1")
        add_usage(owner, tenant.id, at=START, user="bob", key="k2")

        page = await admin.admin.organization.usage.costs(
            start_time=START,
            end_time=START + DAY,
            group_by=["line_item", "user_id", "api_key_id"],
            api_key_ids=["k1"],
            line_items=["tiny, output"],
        )

        results: list[Any] = page.data[0].results
        [result] = results
        assert (result.line_item, result.user_id) == ("tiny, output", "ann")
        assert result.api_key_id == "k1"
        assert (result.quantity, result.amount.value) == (50, 0.0002)

    async def test_pages_are_walked_by_their_cursors(
        self, admin: openai.AsyncOpenAI, owner: DictConnection, tenant: Tenant
    ) -> None:
        for day in range(10):
            add_usage(owner, tenant.id, at=START + day * DAY)
        fields: Any = {"start_time": START, "end_time": START + 10 * DAY, "limit": 4}
        ask = admin.admin.organization.usage.costs

        pages = [await ask(**fields)]
        while (cursor := pages[-1].next_page) is not None:
            assert pages[-1].has_more
            pages.append(await ask(**fields, page=cursor))

        starts = [bucket.start_time for page in pages for bucket in page.data]
        assert starts == [START + day * DAY for day in range(10)]
        assert all(len(bucket.results) == 1 for page in pages for bucket in page.data)

    async def test_a_key_that_may_not_read_usage_is_refused(
        self, api_url: str, owner: DictConnection, tenant: Tenant
    ) -> None:
        key = create_api_key(
            owner,
            tenant_id=tenant.id,
            name="narrow",
            pepper=PEPPER.encode(),
            scopes=[Scope.INFER_WRITE, Scope.JOBS_READ],
        )
        async with openai.AsyncOpenAI(
            base_url=f"{api_url}/v1", api_key="unused", admin_api_key=key
        ) as client:
            with pytest.raises(openai.PermissionDeniedError):
                await client.admin.organization.usage.completions(start_time=START)
            with pytest.raises(openai.PermissionDeniedError):
                await client.admin.organization.usage.costs(start_time=START)


async def test_default_pages_are_openais(http: httpx.AsyncClient) -> None:
    far = {"start_time": START, "end_time": START + 400 * DAY}

    async def num_buckets(path: str, **params: Any) -> int:
        return len((await http.get(path, params=far | params)).json()["data"])

    assert await num_buckets(USAGE) == 7
    assert await num_buckets(USAGE, bucket_width="1h") == 24
    assert await num_buckets(USAGE, bucket_width="1m") == 60
    assert await num_buckets(USAGE, bucket_width="1m", limit=1_440) == 1_440
    assert await num_buckets(COSTS) == 7
    assert await num_buckets(COSTS, limit=180) == 180


async def test_other_tenants_usage_is_never_in_it(
    http: httpx.AsyncClient, owner: DictConnection, other_tenant: Tenant
) -> None:
    add_usage(owner, other_tenant.id, at=START, user="ann")
    theirs = {"project_ids": f"proj_{other_tenant.id.hex}"}

    for path in (USAGE, COSTS):
        assert _results(await http.get(path, params=ONE_DAY)) == []
        assert _results(await http.get(path, params=ONE_DAY | theirs)) == []
    lines = await http.get("/v1/usage/jobs", params=ONE_DAY | {"format": "csv"})
    assert len(lines.text.splitlines()) == 1


async def test_too_many_results_are_refused(
    http: httpx.AsyncClient,
    owner: DictConnection,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(usage_buckets, "MAX_ROWS", 3)
    for number in range(4):
        add_usage(owner, tenant.id, at=START, user=f"user-{number}")

    refused = await http.get(USAGE, params=ONE_DAY | {"group_by": "user_id"})
    whole = await http.get(USAGE, params=ONE_DAY)

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")
    assert len(_results(whole)) == 1


@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        (COSTS, {}, "start_time"),
        (COSTS, {"start_time": START, "limit": 181}, "limit"),
        (COSTS, {"start_time": START, "limit": 0}, "limit"),
        (COSTS, {"start_time": START, "bucket_width": "1h"}, "bucket_width"),
        (COSTS, {"start_time": START, "group_by[]": "model"}, "group_by.0"),
        (COSTS, {"start_time": START, "end_time": START}, "start_time"),
        (USAGE, {"start_time": 1 << 60}, "start_time"),
        (USAGE, {"start_time": "yesterday"}, "start_time"),
        (USAGE, {"start_time": START, "end_time": -1}, "end_time"),
        (USAGE, {"start_time": START, "group_by[]": "api_source"}, "group_by.0"),
        (USAGE, {"start_time": START, "batch": "perhaps"}, "batch"),
        (USAGE, {"start_time": START, "format": "xml"}, "format"),
        (USAGE, {"start_time": START, "models[]": ["m"] * 101}, "models"),
        (USAGE, {"start_time": START, "user_ids": "u" * 513}, "user_ids.0"),
        (USAGE, {"start_time": START, "user_ids[]": "\0"}, "user_ids.0"),
        (USAGE, {"start_time": START, "page": "page_" + 32 * "A"}, "page"),
        ("/v1/usage/jobs", {"start_time": START, "end_time": START - 1}, "start_time"),
        ("/v1/usage/jobs", {"limit": 101}, "limit"),
        ("/v1/usage/jobs", {"after": "job_1"}, "after"),
        ("/v1/usage/jobs", {"after": "job_" + 32 * "0"}, "after"),
    ],
)
async def test_bad_parameters_are_named(
    http: httpx.AsyncClient, path: str, params: dict[str, Any], param: str
) -> None:
    answer = await http.get(path, params=params)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_the_last_bucket_of_time_can_be_asked_for(http: httpx.AsyncClient) -> None:
    end = 253_402_300_799

    answer = await http.get(USAGE, params={"start_time": end - 10, "end_time": end})

    assert [bucket["end_time"] for bucket in answer.json()["data"]] == [end]
