"""The event stream against a producer that writes the log by the worker's own script."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from millrace.streams import EventSession
from millrace.types import Event
from store.pools import DictConnection
from tasks.events import EventType
from tasks.jobs import ENGINE_ERROR
from tasks.stream import SEQUENCE_JUMP
from tests.integration.api.conftest import Tenant, serve_api
from tests.integration.api.producer import Producer, RunningJob
from tests.support.services import Services

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 100}
DEADLINE_S = 20.0


@dataclass
class Seen:
    """What a client made of the events, by the rules of the wire format."""

    events: list[Event] = field(default_factory=list)
    text: str = ""

    def take(self, event: Event) -> None:
        self.events.append(event)
        if event.type == "gap":
            self.text = event.data["text"]
        self.text += event.text

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events if event.type != "queued"]

    @property
    def numbers(self) -> list[int]:
        return [event.seq for event in self.events if event.seq is not None]

    @property
    def done(self) -> dict[str, Any]:
        [event] = [event for event in self.events if event.type == "done"]
        job: dict[str, Any] = event.data["job"]
        return job


async def test_stream_shows_queue_then_tokens_then_the_job(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    async with _reading(http, job_id) as seen:
        await _until(lambda: seen.events)
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
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    producer.finish(running)

    answer = await http.get(f"/v1/jobs/{job_id}/events")

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-cache" in answer.headers["cache-control"]
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.content.startswith(b"id: 1\nretry: 1000\nevent: started\ndata: {")
    assert answer.content.endswith(b"\n\n")


async def test_late_reader_gets_the_same_events_as_a_live_one(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    async with _reading(http, job_id) as live:
        running = producer.claim()
        for number in range(300):
            running.say(f"{number} ")
        producer.finish(running)

    async with _reading(http, job_id) as from_log:
        pass
    producer.redis.flushall()
    async with _reading(http, job_id) as from_postgres:
        pass

    numbered = [event for event in live.events if event.seq]
    assert from_log.events == numbered
    assert from_postgres.events == numbered


async def test_reader_joins_in_the_middle_by_header_or_query(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    for word in "abc":
        running.say(word)
    producer.finish(running)

    by_query = await http.get(f"/v1/jobs/{job_id}/events?starting_after=3")
    by_header = await http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "3"})
    after_done = await http.get(f"/v1/jobs/{job_id}/events?starting_after=5")

    assert by_query.content == by_header.content
    assert by_query.content.startswith(b"id: 4\n")
    assert after_done.content.startswith(b"id: 5\nretry: 1000\nevent: done\n")


async def test_readers_that_drop_again_and_again_get_exactly_the_text(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    readers = [asyncio.create_task(_drop_and_resume(http, job_id, seed)) for seed in range(8)]

    for number in range(400):
        running.say(f"{number} ")
        await asyncio.sleep(0.005)
    producer.finish(running)

    for seen in await asyncio.gather(*readers):
        assert seen.numbers == list(range(1, 403))
        assert seen.text == running.text == seen.done["output"][0]["text"]


async def test_lost_pubsub_messages_are_made_up_for(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    async with _reading(http, job_id) as seen:
        for number in range(200):
            if number % 20 == 10:
                producer.redis.client_kill_filter(_type="pubsub")
            running.say(f"{number} ")
            await asyncio.sleep(0.01)
        producer.finish(running)

    assert seen.numbers == list(range(1, 203))
    assert seen.text == running.text


async def test_redis_restarted_empty_and_written_anew(
    http: httpx.AsyncClient, producer: Producer, services: Services
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    async with _reading(http, job_id) as seen:
        for number in range(50):
            running.say(f"{number} ")
        await _until(lambda: seen.numbers[-1:] == [51])
        await asyncio.to_thread(services.restart_redis_empty)
        running.add_token("after ")
        await _until(lambda: _try(running.publish_all_again))
        running.say("the loss")
        producer.finish(running)

    assert seen.numbers == list(range(1, 55))
    assert seen.text == running.text


async def test_new_attempt_after_a_loss_gives_a_gap_to_readers_from_before(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    async with _reading(http, job_id) as seen:
        for word in ("one ", "two ", "lost "):
            running.say(word)
        await _until(lambda: seen.numbers[-1:] == [4])
        producer.redis.flushall()
        _go_on_beyond(running, text="one two ")
        running.say("three")
        producer.finish(running)

    assert seen.types == ["started", "token", "token", "token", "gap", "token", "done"]
    assert seen.numbers == [1, 2, 3, 4, *range(SEQUENCE_JUMP, SEQUENCE_JUMP + 3)]
    assert seen.text == seen.done["output"][0]["text"] == "one two three"


async def test_reader_ahead_of_a_running_job_gets_the_text_so_far(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    running.say("so far ")
    async with _reading(http, job_id, after=999) as seen:
        await _until(lambda: seen.events)
        running.say("so good")
        producer.finish(running)

    assert seen.types == ["gap", "token", "done"]
    assert seen.text == "so far so good"


async def test_reader_ahead_of_a_finished_job_gets_all_text_and_the_end(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    running.say("all")
    producer.finish(running)

    async with _reading(http, job_id, after=999) as seen:
        pass

    assert seen.types == ["gap", "done"]
    assert seen.numbers == [1000, 1001]
    assert seen.text == "all"


async def test_reader_after_all_logs_have_expired_gets_all_text_and_the_end(
    http: httpx.AsyncClient, producer: Producer, owner: DictConnection
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    running.say("kept")
    producer.finish(running)
    producer.redis.flushall()
    owner.execute("UPDATE job_results SET event_log = NULL")

    async with _reading(http, job_id) as seen:
        pass

    assert seen.types == ["gap", "done"]
    assert seen.text == "kept"


async def test_worker_that_dies_after_its_commit_still_ends_the_stream(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    async with _reading(http, job_id) as seen:
        running.say("seen ")
        await _until(lambda: seen.text)
        running.add_token("unpublished")
        producer.commit(running)

    assert seen.types == ["started", "token", "token", "done"]
    assert seen.numbers == [1, 2, 3, 4]
    assert seen.text == seen.done["output"][0]["text"]


async def test_cancelled_in_the_queue_ends_the_stream(http: httpx.AsyncClient) -> None:
    job_id = await _create(http)
    async with _reading(http, job_id) as seen:
        await _until(lambda: seen.events)
        await http.post(f"/v1/jobs/{job_id}/cancel")

    assert seen.types == ["done"]
    assert seen.done["status"] == "cancelled"


async def test_failed_job_ends_its_stream_with_the_reason(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    job_id = await _create(http)
    async with _reading(http, job_id) as seen:
        producer.finish(producer.claim(), ENGINE_ERROR)

    assert seen.done["error"]["code"] == "engine_error"
    assert seen.done["error"]["retryable"] is True


async def test_place_in_the_queue_is_told_when_it_changes(
    http: httpx.AsyncClient, producer: Producer
) -> None:
    await _create(http)
    second = await _create(http)
    async with _reading(http, second) as seen:
        await _until(lambda: seen.events)
        producer.claim()
        await _until(lambda: len(seen.events) == 2)
        await http.post(f"/v1/jobs/{second}/cancel")

    positions = [event.data["position"] for event in seen.events if event.type == "queued"]
    assert positions == [1, 0]


async def test_reader_on_another_replica_needs_no_affinity(
    http: httpx.AsyncClient, producer: Producer, tenant: Tenant
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    running.say("one ")
    async with (
        serve_api() as url,
        httpx.AsyncClient(base_url=url, headers=tenant.headers, timeout=30) as elsewhere,
        _reading(elsewhere, job_id, after=2) as seen,
    ):
        running.say("two")
        producer.finish(running)

    assert seen.numbers == [3, 4]


async def test_events_go_on_when_redis_was_away_at_the_start(
    http: httpx.AsyncClient, producer: Producer, services: Services
) -> None:
    job_id = await _create(http)
    running = producer.claim()
    running.say("one ")
    services.redis.stop()
    try:
        async with _reading(http, job_id) as seen:
            running.add_token("two")
            producer.commit(running)
    finally:
        services.redis.start()

    assert seen.types == ["started", "token", "token", "done"]
    assert seen.text == "one two"


def _go_on_beyond(running: RunningJob, *, text: str) -> None:
    """What an attempt does that finds the log lost."""
    running.events = []
    running.add(EventType.GAP, **{"from": 1, "to": SEQUENCE_JUMP, "text": text})
    running.events[0] = running.events[0]._replace(seq=SEQUENCE_JUMP)
    running.publish_all_again()


async def _create(http: httpx.AsyncClient) -> str:
    answer = await http.post("/v1/jobs", json=BODY)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


@asynccontextmanager
async def _reading(http: httpx.AsyncClient, job_id: str, after: int = 0) -> AsyncIterator[Seen]:
    """Reads in the background; leaving the block waits for the stream's end."""
    seen = Seen()

    async def read() -> None:
        async for event in _events(http, EventSession(job_id, after)):
            seen.take(event)

    task = asyncio.create_task(read())
    try:
        yield seen
        await asyncio.wait_for(task, DEADLINE_S)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _events(http: httpx.AsyncClient, session: EventSession) -> AsyncIterator[Event]:
    async with http.stream("GET", session.path, headers=session.headers()) as answer:
        assert answer.status_code == 200
        async for data in answer.aiter_raw():
            for event in session.feed(data):
                yield event


async def _drop_and_resume(http: httpx.AsyncClient, job_id: str, seed: int) -> Seen:
    """Leaves after 20 to 400 ms, comes back at once by Last-Event-ID. Drops nothing by itself."""
    rng = random.Random(seed)
    seen = Seen()
    last = 0
    while "done" not in seen.types:
        try:
            async with asyncio.timeout(rng.uniform(0.02, 0.4)):
                session = EventSession(job_id, last)
                async for event in _events(http, session):
                    seen.take(event)
                    last = event.seq or last
        except TimeoutError:
            continue
    return seen


async def _until(is_true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_true():
            await asyncio.sleep(0.01)


def _try(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:
        return False
    return True
