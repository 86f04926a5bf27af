"""Responses over HTTP, as OpenAI's own client uses them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest

from store.pools import DictConnection
from tests.integration.api.conftest import Tenant
from tests.integration.api.producer import Producer
from tests.integration.api.responding import answered, is_queued


async def test_an_answer_is_waited_for(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    response = await answered(
        client, owner, producer, "hi", input="hello", instructions="Be brief."
    )

    assert (response.status, response.output_text) == ("completed", "hi")
    assert response.usage.output_tokens == 2
    assert (await client.responses.retrieve(response.id)).output_text == "hi"


async def test_the_stream_helper_follows_to_the_end(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    async def read() -> tuple[list[str], Any]:
        async with client.responses.stream(model="tiny", input="hello") as stream:
            kinds: list[str] = [event.type async for event in stream]
            return kinds, await stream.get_final_response()

    reading = asyncio.create_task(read())
    await is_queued(owner)
    job = producer.claim()
    job.say("a")
    job.say("b")
    producer.finish(job)

    kinds, final = await reading

    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") == 2
    assert kinds[-1] == "response.completed"
    assert final.output_text == "ab"


async def test_in_the_background_one_polls_and_resumes(
    client: openai.AsyncOpenAI,
    http: httpx.AsyncClient,
    owner: DictConnection,
    producer: Producer,
) -> None:
    started = await client.responses.create(model="tiny", input="hello", background=True)
    polled = await http.get(f"/v1/responses/{started.id}")
    job = producer.claim()
    for piece in "abc":
        job.say(piece)
    producer.finish(job)
    whole = [
        event.model_dump()
        async for event in await client.responses.retrieve(started.id, stream=True)
    ]
    rest = [
        event.model_dump()
        async for event in await client.responses.retrieve(
            started.id, stream=True, starting_after=4
        )
    ]

    beyond = [
        [
            event
            async for event in await client.responses.retrieve(
                started.id, stream=True, starting_after=n
            )
        ]
        for n in (len(whole) - 1, len(whole), 1_000)
    ]

    assert beyond == [[], [], []]
    assert started.status == "queued"
    assert int(polled.headers["openai-poll-after-ms"]) > 0
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert rest == whole[5:]
    row = owner.execute("SELECT on_disconnect FROM jobs").fetchone()
    assert row == {"on_disconnect": "continue"}


async def test_a_resume_of_expired_history_says_so(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    response = await answered(client, owner, producer, "abc", input="hello")
    owner.execute("UPDATE job_results SET event_log = NULL")
    producer.redis.flushdb()

    with pytest.raises(openai.APIStatusError) as error:
        await client.responses.retrieve(response.id, stream=True, starting_after=4)

    assert error.value.status_code == 410
    assert error.value.code == "stream_expired"


async def test_a_background_response_is_cancelled_and_stays_so(
    client: openai.AsyncOpenAI, owner: DictConnection
) -> None:
    started = await client.responses.create(model="tiny", input="hello", background=True)

    first = await client.responses.cancel(started.id)
    second = await client.responses.cancel(started.id)

    assert (first.status, second.status) == ("cancelled", "cancelled")


async def test_a_conversation_goes_on_from_an_earlier_response(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    first = await answered(
        client, owner, producer, "blue", input="what colour", instructions="Be brief."
    )
    second = await answered(
        client, owner, producer, "yes", input="sure", previous_response_id=first.id
    )
    counted = await client.responses.input_tokens.count(
        model="tiny", input="why", previous_response_id=second.id
    )
    alone = await client.responses.input_tokens.count(
        model="tiny",
        input=[
            {"role": "user", "content": "what colour"},
            {"role": "assistant", "content": "blue"},
            {"role": "user", "content": "sure"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "why"},
        ],
    )

    assert second.previous_response_id == first.id
    assert counted.input_tokens == alone.input_tokens


async def test_what_was_deleted_or_not_stored_is_not_there(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    deleted = await answered(client, owner, producer, "a", input="hello")
    unstored = await answered(client, owner, producer, "b", input="hello", store=False)

    await client.responses.delete(deleted.id)

    for id_ in (deleted.id, unstored.id, "resp_x"):
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(id_)
        with pytest.raises(openai.NotFoundError) as error:
            await client.responses.create(model="tiny", input="x", previous_response_id=id_)
        assert error.value.code == "previous_response_not_found"
    left = owner.execute("SELECT count(*) AS n FROM job_payloads").fetchone()
    assert left == {"n": 1}


async def test_input_items_are_listed(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    response = await answered(
        client,
        owner,
        producer,
        "ok",
        input=[
            {"role": "user", "content": "one"},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "three"},
        ],
    )

    items = [
        item async for item in client.responses.input_items.list(response.id, order="asc", limit=2)
    ]

    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]


async def test_too_long_a_conversation_is_shortened_only_where_that_is_asked_for(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    turns = [
        {"role": role, "content": f"number {n} " * 8}
        for n in range(20)
        for role in ("user", "assistant")
    ]
    conversation: Any = [*turns, {"role": "user", "content": "the last"}]

    with pytest.raises(openai.BadRequestError) as error:
        await client.responses.create(model="tiny", input=conversation)
    response = await answered(
        client, owner, producer, "ok", input=conversation, truncation="auto", max_output_tokens=20
    )

    assert error.value.code == "context_length_exceeded"
    assert 100 < response.usage.input_tokens <= 236


async def test_another_tenants_response_is_not_there(
    client: openai.AsyncOpenAI, api_url: str, other_tenant: Tenant
) -> None:
    started = await client.responses.create(model="tiny", input="hello", background=True)

    async with openai.AsyncOpenAI(
        base_url=f"{api_url}/v1", api_key=other_tenant.api_key, max_retries=0
    ) as other:
        for ask in (other.responses.retrieve, other.responses.cancel, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                await ask(started.id)
        with pytest.raises(openai.NotFoundError):
            await other.responses.create(model="tiny", input="x", previous_response_id=started.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conversation", "conv_1"),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("prompt", {"id": "pmpt_1"}),
        ("tool_choice", {"type": "web_search"}),
    ],
)
async def test_what_is_not_there_is_refused(
    client: openai.AsyncOpenAI, field: str, value: Any
) -> None:
    body: dict[str, Any] = {"model": "tiny", "input": "x", field: value}

    with pytest.raises(openai.BadRequestError) as error:
        await client.responses.create(**body)

    assert str(error.value.param).startswith(field)
