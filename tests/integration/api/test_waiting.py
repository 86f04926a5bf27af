"""Waiting for a job's end: how long, and by whose clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest

from api import waiting
from store.pools import DictConnection
from tasks.ids import follow_clock, format_job_id, parse_job_id, uuid7_unix_ms
from tests.integration.api.producer import Producer, RunningJob
from tests.support.waiting import until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
HOUR_S = 3_600
MONTH_S = 30 * 24 * HOUR_S


@pytest.fixture(params=[HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def shifted_clock(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The API's clock is an hour off; that of Postgres is right."""
    right, right_ns, offset_s = time.time, time.time_ns, request.param
    monkeypatch.setattr(time, "time", lambda: right() + offset_s)
    monkeypatch.setattr(time, "time_ns", lambda: right_ns() + offset_s * 10**9)
    yield
    monkeypatch.undo()
    follow_clock(time.time_ns() // 1_000_000)


@pytest.mark.usefixtures("shifted_clock")
async def test_a_clock_that_is_off_ends_no_chat_early(
    http: httpx.AsyncClient,
    producer: Producer,
    owner: DictConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "STREAM_GRACE_S", 0.0)  # nothing but the time that is left

    asking = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT))
    await until(lambda: owner.execute("SELECT FROM jobs").fetchone() is not None)
    running = producer.claim()
    await http.get(f"/v1/jobs/{running.id}", params={"wait_s": 0.2})
    running.say("hi")
    producer.finish(running)

    answer = await asking
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "hi"


@pytest.mark.usefixtures("shifted_clock")
async def test_a_report_without_an_end_ends_by_the_clock_that_jobs_are_stamped_with(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    before = _now(owner)

    report = (await http.get("/v1/usage")).json()
    buckets = await http.get(
        "/v1/organization/usage/completions",
        params={"start_time": before - 7_200, "bucket_width": "1m", "limit": 1_440},
    )

    after = _now(owner)
    assert before <= report["end_time"] <= after
    assert report["start_time"] == report["end_time"] - MONTH_S
    assert before < buckets.json()["data"][-1]["end_time"] <= after + 1


@pytest.mark.usefixtures("shifted_clock")
async def test_ids_tell_the_time_that_jobs_are_stamped_with(http: httpx.AsyncClient) -> None:
    job = (await http.post("/v1/jobs", json={"model": "tiny", "prompt": "x"})).json()

    job_id = parse_job_id(job["id"])

    assert job_id is not None
    assert abs(uuid7_unix_ms(job_id) // 1_000 - job["created_at"]) < HOUR_S / 60


@pytest.mark.usefixtures("shifted_clock")
async def test_a_retry_at_a_replica_whose_clock_is_off_finds_the_job_of_the_first_try(
    http: httpx.AsyncClient, owner: DictConnection
) -> None:
    body = {"model": "tiny", "prompt": "x"}
    await http.post("/v1/jobs", json=body)
    owner.execute("UPDATE jobs SET id = uuid7_floor(now())")  # as another replica made it

    again = await http.post("/v1/jobs", json=body, headers={"x-stainless-retry-count": "1"})

    rows = owner.execute("SELECT id FROM jobs").fetchall()
    assert [format_job_id(row["id"]) for row in rows] == [again.json()["id"]]


@pytest.mark.parametrize("wait_s", ["-1", "-0.001", "nan", "inf", "-inf", "61", "soon"])
async def test_only_a_time_from_0_to_60_s_can_be_waited(
    http: httpx.AsyncClient, running: RunningJob, wait_s: str
) -> None:
    answer = await http.get(f"/v1/jobs/{running.id}", params={"wait_s": wait_s})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wait_s")


@pytest.mark.parametrize("wait_s", ["0", "-0.0", "5e-324", "1e-9", "0.001"])
async def test_the_shortest_wait_is_answered_and_costs_no_connection(
    http: httpx.AsyncClient, running: RunningJob, producer: Producer, wait_s: str
) -> None:
    path = f"/v1/jobs/{running.id}"

    answers = await asyncio.gather(*(http.get(path, params={"wait_s": wait_s}) for _ in range(40)))

    assert {answer.json()["status"] for answer in answers} == {"in_progress"}
    waiting_long = asyncio.create_task(http.get(path, params={"wait_s": 60}))
    producer.finish(running)
    assert (await waiting_long).json()["status"] == "completed"


def _now(owner: DictConnection) -> int:
    row = owner.execute("SELECT floor(extract(epoch FROM now()))::int AS now").fetchone()
    assert row is not None
    now: int = row["now"]
    return now
