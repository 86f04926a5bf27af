"""A client of responses, and answers to what it asks."""

from __future__ import annotations

import asyncio
from typing import Any

import openai

from store.pools import DictConnection
from tests.integration.api.producer import Producer
from tests.support.waiting import until


async def is_queued(owner: DictConnection) -> None:
    """Until a job waits for the producer."""
    await until(
        lambda: owner.execute("SELECT 1 FROM jobs WHERE status = 'queued'").fetchone(),
        timeout_s=20,
        what="a queued job",
    )


async def answered(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer, text: str, **body: Any
) -> Any:
    """A response with this text, a token a letter."""
    asked = asyncio.create_task(client.responses.create(model="tiny", **body))
    await is_queued(owner)
    job = producer.claim()
    for piece in text:
        job.say(piece)
    producer.finish(job)
    return await asked
