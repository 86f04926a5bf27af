"""Waiting for a job's end: how long, and by whose clock."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from api import waiting
from store.pools import DictConnection
from tests.integration.api.producer import Producer, RunningJob
from tests.support.waiting import until

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9}
HOUR_S = 3_600
MONTH_S = 30 * 24 * HOUR_S


@pytest.fixture(params=[HOUR_S, -HOUR_S], ids=["ahead", "behind"])
def shifted_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API's clock is an hour off; that of Postgres is right."""
    right, offset_s = time.time, request.param
    monkeypatch.setattr(time, "time", lambda: right() + offset_s)


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
