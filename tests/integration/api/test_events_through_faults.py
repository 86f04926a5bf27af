"""Event streams while Redis or a worker fails: no event is lost, doubled or made up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx

from tasks.events import EventType
from tasks.stream import SEQUENCE_JUMP
from tests.integration.api.producer import Producer, RunningJob
from tests.integration.api.readers import reading
from tests.support.services import Services
from tests.support.waiting import until


async def test_lost_pubsub_messages_are_made_up_for(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    async with reading(http, running.id) as seen:
        for number in range(200):
            if number % 20 == 10:
                producer.redis.client_kill_filter(_type="pubsub")
            running.say(f"{number} ")
            await asyncio.sleep(0.01)
        producer.finish(running)

    assert seen.numbers == list(range(1, 203))
    assert seen.text == running.text


async def test_redis_restarted_empty_and_written_anew(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob, services: Services
) -> None:
    async with reading(http, running.id) as seen:
        for number in range(50):
            running.say(f"{number} ")
        await until(lambda: seen.numbers[-1:] == [51])
        await asyncio.to_thread(services.restart_redis_empty)
        running.add_token("after ")
        await until(lambda: _try(running.publish_all_again))
        running.say("the loss")
        producer.finish(running)

    assert seen.numbers == list(range(1, 55))
    assert seen.text == running.text


async def test_new_attempt_after_a_loss_gives_a_gap_to_readers_from_before(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    async with reading(http, running.id) as seen:
        for word in ("one ", "two ", "lost "):
            running.say(word)
        await until(lambda: seen.numbers[-1:] == [4])
        producer.redis.flushall()
        _go_on_beyond(running, text="one two ")
        running.say("three")
        producer.finish(running)

    assert seen.types == ["started", "token", "token", "token", "gap", "token", "done"]
    assert seen.numbers == [1, 2, 3, 4, *range(SEQUENCE_JUMP, SEQUENCE_JUMP + 3)]
    assert seen.text == seen.done["output"][0]["text"] == "one two three"


async def test_worker_that_dies_after_its_commit_still_ends_the_stream(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob
) -> None:
    async with reading(http, running.id) as seen:
        running.say("seen ")
        await until(lambda: seen.text)
        running.add_token("unpublished")
        producer.commit(running)

    assert seen.types == ["started", "token", "token", "done"]
    assert seen.numbers == [1, 2, 3, 4]
    assert seen.text == seen.done["output"][0]["text"]


async def test_events_go_on_when_redis_was_away_at_the_start(
    http: httpx.AsyncClient, producer: Producer, running: RunningJob, services: Services
) -> None:
    running.say("one ")
    services.redis.stop()
    try:
        async with reading(http, running.id) as seen:
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


def _try(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:
        return False
    return True
