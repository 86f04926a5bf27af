"""CSV: of buckets, and of every settled job, streamed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.reports import jobs_export
from api.schemas.objects import Page
from api.schemas.usage import JobUsageShown
from store.pools import DictConnection
from tasks.ids import format_job_id
from tests.integration.api.conftest import Tenant
from tests.integration.api.settled import add_usage

DAY = 86_400
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
USAGE = "/v1/organization/usage/completions"
COSTS = "/v1/organization/costs"
JOBS = "/v1/usage/jobs"
PERIOD: dict[str, Any] = {"start_time": START, "end_time": START + 2 * DAY}

_MANY = """
INSERT INTO usage (job_id, tenant_id, api_key_id, model, service_tier, status, payer, input_tokens,
    cached_tokens, output_tokens, price_version, amount_micros, currency, created_at)
SELECT gen_random_uuid(), %s, 'key', 'tiny', 'default', 'completed', 'tenant', 1, 0, number, 1, 1,
    'USD', to_timestamp(%s + number / 7) FROM generate_series(0, %s) AS number
"""


def _lines(answer: httpx.Response) -> list[dict[str, str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def _add_many(owner: DictConnection, tenant: Tenant, number: int) -> None:
    """Seven end in each second."""
    owner.execute(_MANY, (tenant.id, START, number - 1))


@pytest.mark.parametrize(
    ("accept", "query", "is_csv"),
    [
        ("text/csv", {}, True),
        ("TEXT/CSV;q=0.9, text/plain", {}, True),
        ("*/*", {}, False),
        ("application/json, text/csv", {}, False),
        ("text/html, */*", {"format": "csv"}, True),
        ("text/csv", {"format": "json"}, False),
    ],
)
@pytest.mark.parametrize("path", [USAGE, COSTS, JOBS])
async def test_csv_is_for_those_who_ask_for_it(
    http: httpx.AsyncClient, path: str, accept: str, query: dict[str, str], is_csv: bool
) -> None:
    answer = await http.get(path, params=PERIOD | query, headers={"Accept": accept})

    assert answer.headers["content-type"].startswith("text/csv") is is_csv


async def test_buckets_as_csv_say_what_the_json_says(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    charged = add_usage(owner, tenant.id, at=START + DAY, user="ann", tier="batch")
    by_user = PERIOD | {"group_by": ["user_id", "batch"], "format": "csv"}
    by_item = PERIOD | {"group_by": "line_item", "format": "csv"}

    [used] = _lines(await http.get(USAGE, params=by_user))
    items = _lines(await http.get(COSTS, params=by_item))

    assert (used["user_id"], used["batch"], used["input_cached_tokens"]) == ("ann", "true", "30")
    assert (used["start_time"], used["end_time"]) == (str(START + DAY), str(START + 2 * DAY))
    assert used["model"] == ""
    assert {item["currency"] for item in items} == {"USD"}
    assert sum(round(float(item["amount"]) * 1_000_000) for item in items) == charged


async def test_a_page_of_csv_names_the_next_in_a_header(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    add_usage(owner, tenant.id, at=START + DAY)
    params = PERIOD | {"format": "csv", "limit": 1}

    first = await http.get(USAGE, params=params)
    second = await http.get(USAGE, params=params | {"page": first.headers["x-next-page"]})

    assert (len(_lines(first)), len(_lines(second))) == (0, 1)
    assert "x-next-page" not in second.headers


async def test_without_results_there_is_still_a_head(http: httpx.AsyncClient) -> None:
    for path in (USAGE, COSTS, JOBS):
        answer = await http.get(path, params=PERIOD | {"format": "csv"})

        assert len(answer.text.splitlines()) == 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=1,"2"\n3'])
async def test_no_cell_is_a_formula(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant, text: str
) -> None:
    add_usage(owner, tenant.id, at=START, user=text)

    for path, column in ((USAGE, "user_id"), (COSTS, "user_id"), (JOBS, "end_user")):
        params = PERIOD | {"format": "csv"} | ({"group_by": "user_id"} if path != JOBS else {})
        [line] = _lines(await http.get(path, params=params))

        assert line[column] == f"'{text}"


async def test_a_job_is_one_line_with_all_that_was_billed(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    charged = add_usage(owner, tenant.id, at=START + 7, user="ann", key="k1", tier="flex")
    params = PERIOD | {"format": "csv"}

    [line] = _lines(await http.get(JOBS, params=params))
    [job] = (await http.get(JOBS, params=PERIOD)).json()["data"]

    assert list(line) == list(jobs_export.JOB_COLUMNS)
    assert line == {name: str(job[name]) for name in jobs_export.JOB_COLUMNS}
    assert (job["finished_at"], job["amount_micros"]) == (START + 7, charged)
    assert (job["model"], job["service_tier"], job["payer"]) == ("tiny", "flex", "tenant")
    assert (job["end_user"], job["api_key_id"]) == ("ann", "k1")


async def test_jobs_as_json_come_in_pages(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    _add_many(owner, tenant, 25)

    pages = [(await http.get(JOBS, params=PERIOD | {"limit": 10})).json()]
    while pages[-1]["has_more"]:
        params = PERIOD | {"limit": 10, "after": pages[-1]["last_id"]}
        pages.append((await http.get(JOBS, params=params)).json())

    for page in pages:
        Page[JobUsageShown].model_validate(page)
    assert [len(page["data"]) for page in pages] == [10, 10, 5]
    _assert_all_once_in_order([job for page in pages for job in page["data"]], 25)


async def test_a_place_before_the_period_begins_at_its_start(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    for at in (START, START + 10, START + 20):
        add_usage(owner, tenant.id, at=at)
    [first, *_] = (await http.get(JOBS, params=PERIOD)).json()["data"]

    later = {"start_time": START + 15, "end_time": START + DAY, "after": first["id"]}
    page = (await http.get(JOBS, params=later)).json()

    assert [job["finished_at"] for job in page["data"]] == [START + 20]


async def test_an_export_of_many_pages_has_every_job_once(
    http: httpx.AsyncClient,
    owner: DictConnection,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs_export, "PAGE", 10)  # not a multiple of seven
    _add_many(owner, tenant, 500)

    lines = _lines(await http.get(JOBS, params=PERIOD | {"format": "csv"}))

    _assert_all_once_in_order(lines, 500)


async def test_a_fault_halfway_is_never_taken_for_the_end(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant
) -> None:
    """100,000 lines are more than all buffers on the way hold, so most are read after the fault."""
    _add_many(owner, tenant, 100_000)

    async with http.stream("GET", JOBS, params=PERIOD | {"format": "csv"}) as answer:
        assert answer.status_code == 200
        owner.execute("REVOKE SELECT ON usage FROM millrace_api")
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()


async def test_a_fault_before_the_first_line_has_a_status(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    owner.execute("REVOKE SELECT ON usage FROM millrace_api")

    answer = await http.get(JOBS, params=PERIOD | {"format": "csv"})

    assert answer.status_code == 500


def _assert_all_once_in_order(jobs: Sequence[dict[str, Any]], number: int) -> None:
    assert sorted(int(job["output_tokens"]) for job in jobs) == list(range(number))
    places = [(int(job["finished_at"]), job["id"]) for job in jobs]
    assert places == sorted(places)


def _settled(number: int, at: int, owner: DictConnection, tenant: Tenant) -> str:
    job_id = UUID(int=number << 80 | 7 << 76 | 2 << 62)
    add_usage(owner, tenant.id, at=at, job_id=job_id)
    return format_job_id(job_id)


async def _followed(http: httpx.AsyncClient, **params: Any) -> list[str]:
    answer = await http.get(JOBS, params={"order": "settled", **params})
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


async def test_who_follows_settled_jobs_misses_none_that_ended_earlier(
    http: httpx.AsyncClient, owner: DictConnection, tenant: Tenant, other_tenant: Tenant
) -> None:
    first = _settled(2, START + 10, owner, tenant)
    assert await _followed(http) == [first]

    late = _settled(1, START, owner, tenant)  # it ended before, and is settled only now
    last = _settled(3, START + 20, owner, tenant)
    _settled(4, START, owner, other_tenant)

    assert await _followed(http, after=first) == [late, last]
    assert await _followed(http, after=first, limit=1) == [late]
    assert await _followed(http, after=last) == []
    lines = _lines(await http.get(JOBS, params={"order": "settled", "format": "csv"}))
    assert [line["id"] for line in lines] == [first, late, last]
    by_end = await http.get(JOBS, params=PERIOD)
    assert [job["id"] for job in by_end.json()["data"]] == [late, first, last]


@pytest.mark.parametrize(
    ("query", "param"),
    [({"order": "newest"}, "order"), ({"order": "settled", "start_time": START}, "order")],
)
async def test_an_order_that_there_is_not_is_refused(
    http: httpx.AsyncClient, query: dict[str, Any], param: str
) -> None:
    answer = await http.get(JOBS, params=query)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_the_settled_are_exported_over_many_pages(
    http: httpx.AsyncClient,
    owner: DictConnection,
    tenant: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs_export, "PAGE", 10)
    _add_many(owner, tenant, 35)

    lines = _lines(await http.get(JOBS, params={"order": "settled", "format": "csv"}))

    assert [int(line["output_tokens"]) for line in lines] == list(range(35))
