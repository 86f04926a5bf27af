"""The event stream against a producer that writes the log by the worker's own script."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx
import pytest

from store.pools import DictConnection
from tasks.jobs import ENGINE_ERROR
from tests.integration.api.conftest import Tenant, serve_api
from tests.integration.api.producer import Producer, RunningJob
from tests.integration.api.readers import create_job, drop_and_resume, reading
from tests.support.waiting import until


async def test_stream_shows_queue_then_tokens_then_the_job(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await create_job(http)
    async with reading(http, job_id) as seen:
        await until(lambda: seen.events)
        running = producer.claim()
        running.say("one ")
        running.say("two")
        producer.finish(running)

    assert [event.type for event in seen.events] == ["queued", "started", "token", "token", "done"]
    assert seen.events[0].data == {"position": 0, "eta_s": None, "reason": "waiting_for_slot"}
    assert seen.numbers == [1, 2, 3, 4]
    assert seen.done["output"][0]["text"] == seen.text == "one two"
    assert seen.done == (await http.get(f"/v1/jobs/{job_id}")).json()


async def test_headers_and_framing_fit_stock_clients(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    producer.finish(running)

    answer = await http.get(f"/v1/jobs/{running.id}/events")

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-cache" in answer.headers["cache-control"]
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content.startswith(b"id: 1\nevent: started\nretry: 1000\ndata: {")
    assert answer.content.endswith(b"\n\n")


async def test_late_reader_gets_the_same_events_as_a_live_one(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await create_job(http)
    async with reading(http, job_id) as live:
        running = producer.claim()
        for number in range(300):
            running.say(f"{number} ")
        producer.finish(running)

    async with reading(http, job_id) as from_log:
        pass
    producer.redis.flushall()
    async with reading(http, job_id) as from_postgres:
        pass

    numbered = [event for event in live.events if event.seq]
    assert from_log.events == numbered
    assert from_postgres.events == numbered


async def test_everybody_in_a_crowd_gets_the_same_events(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(reading(http, running.id)) for _ in range(40)]
        await until(lambda: all(seen.events for seen in crowd))
        for number in range(20):
            running.say(f"{number} ")
        producer.finish(running)

    assert {seen.text for seen in crowd} == {"".join(f"{number} " for number in range(20))}
    assert all(seen.events == crowd[0].events for seen in crowd)


async def test_reader_joins_in_the_middle_by_header_or_query(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    for word in "abc":
        running.say(word)
    producer.finish(running)

    by_query = await http.get(f"/v1/jobs/{running.id}/events?starting_after=3")
    by_header = await http.get(f"/v1/jobs/{running.id}/events", headers={"Last-Event-ID": "3"})
    after_done = await http.get(f"/v1/jobs/{running.id}/events?starting_after=5")
    beyond = [
        await http.get(f"/v1/jobs/{running.id}/events", headers={"Last-Event-ID": number})
        for number in ("6", "1000", str(2**53))
    ]

    assert by_query.content == by_header.content
    assert by_query.content.startswith(b"id: 4\n")
    assert after_done.content.startswith(b"id: 5\nevent: done\nretry: 1000\n")
    assert {answer.content for answer in beyond} == {after_done.content}


async def test_readers_that_drop_again_and_again_get_exactly_the_text(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    readers = [asyncio.create_task(drop_and_resume(http, running.id, seed)) for seed in range(8)]

    for number in range(400):
        running.say(f"{number} ")
        await asyncio.sleep(0.005)
    producer.finish(running)

    for seen in await asyncio.gather(*readers):
        assert seen.numbers == list(range(1, 403))
        assert seen.text == running.text == seen.done["output"][0]["text"]


async def test_reader_ahead_of_a_running_job_gets_the_text_so_far(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    running.say("so far ")
    async with reading(http, running.id, after=999) as seen:
        await until(lambda: seen.events)
        running.say("so good")
        producer.finish(running)

    assert seen.types == ["gap", "token", "done"]
    assert seen.text == "so far so good"


@pytest.mark.parametrize("is_over", [False, True])
async def test_gap_restates_every_choice(
    http: httpx.AsyncClient, producer: Producer, owner: DictConnection, is_over: bool
) -> None:
    job_id = await create_job(http)
    owner.execute("UPDATE jobs SET num_choices = 2")
    running = producer.claim()
    running.say("first")
    running.say("second", index=1)
    if is_over:
        producer.finish(running)
        producer.redis.flushall()
        owner.execute("UPDATE job_results SET event_log = NULL")

    async with reading(http, job_id, after=1 if is_over else 999) as seen:
        await until(lambda: seen.events)
        if not is_over:
            producer.finish(running)

    assert seen.types == ["gap", "done"]
    assert seen.events[0].data["texts"] == ["first", "second"]
    assert [choice["text"] for choice in seen.done["output"]] == ["first", "second"]


async def test_reader_ahead_of_a_finished_job_hears_of_the_end_under_its_number(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    running.say("all")
    producer.finish(running)

    async with reading(http, running.id) as whole:
        pass
    async with reading(http, running.id, after=999) as seen:
        pass

    assert seen.types == ["done"]
    assert seen.numbers == whole.numbers[-1:]
    assert seen.done["output"][0]["text"] == "all"


async def test_reader_after_all_logs_have_expired_gets_all_text_and_the_end(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob, owner: DictConnection
) -> None:
    running.say("kept")
    producer.finish(running)
    producer.redis.flushall()
    owner.execute("UPDATE job_results SET event_log = NULL")

    async with reading(http, running.id) as seen:
        pass

    assert seen.types == ["gap", "done"]
    assert seen.text == "kept"


async def test_cancelled_in_the_queue_ends_the_stream(http: httpx.AsyncClient) -> None:
    job_id = await create_job(http)
    async with reading(http, job_id) as seen:
        await until(lambda: seen.events)
        await http.post(f"/v1/jobs/{job_id}/cancel")

    assert seen.types == ["done"]
    assert seen.done["status"] == "cancelled"


async def test_failed_job_ends_its_stream_with_the_reason(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await create_job(http)
    async with reading(http, job_id) as seen:
        producer.finish(producer.claim(), ENGINE_ERROR)

    assert seen.done["error"]["code"] == "engine_error"
    assert seen.done["error"]["retryable"] is True


async def test_place_in_the_queue_is_told_when_it_changes(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    await create_job(http)
    second = await create_job(http)
    async with reading(http, second) as seen:
        await until(lambda: seen.events)
        producer.claim()
        await until(lambda: len(seen.events) == 2)
        await http.post(f"/v1/jobs/{second}/cancel")

    positions = [event.data["position"] for event in seen.events if event.type == "queued"]
    assert positions == [1, 0]


async def test_reader_on_another_replica_needs_no_affinity(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob, tenant: Tenant
) -> None:
    running.say("one ")
    async with (
        serve_api() as url,
        httpx.AsyncClient(base_url=url, headers=tenant.headers, timeout=30) as elsewhere,
        reading(elsewhere, running.id, after=2) as seen,
    ):
        running.say("two")
        producer.finish(running)

    assert seen.numbers == [3, 4]
