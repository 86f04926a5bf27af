"""Responses that are deleted, long conversations, and what a request may leave out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import openai
import pytest

from api import deleting
from store.pools import DictConnection
from tasks.events import EventType, make_event
from tasks.keys import stream_log
from tasks.stream import Append, StreamWriter
from tests.integration.api.producer import Producer
from tests.integration.api.responding import answered


async def test_a_deleted_response_is_gone_as_a_job_too(
    client: openai.AsyncOpenAI,
    http: httpx.AsyncClient,
    owner: DictConnection,
    producer: Producer,
) -> None:
    response = await answered(client, owner, producer, "a", input="hello")
    job_id = response.id.replace("resp_", "job_")

    await client.responses.delete(response.id)

    answers = [
        await http.get(f"/v1/jobs/{job_id}"),
        await http.get(f"/v1/jobs/{job_id}/events"),
        await http.post(f"/v1/jobs/{job_id}/cancel"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert (await http.get("/v1/jobs")).json()["data"] == []
    with pytest.raises(openai.NotFoundError):
        await client.responses.delete(response.id)


async def test_nothing_of_a_deleted_response_stays(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    response = await answered(client, owner, producer, "secret", input="hello")
    owner.execute("UPDATE job_attempts SET checkpoint_text = 'secret', checkpoint_token_ids = 'x'")

    await client.responses.delete(response.id)

    for table in ("job_payloads", "job_results"):
        assert owner.execute(f"SELECT 1 FROM {table}").fetchone() is None
    attempt = owner.execute(
        "SELECT checkpoint_text, length(checkpoint_token_ids) AS num_bytes FROM job_attempts"
    ).fetchone()
    assert attempt == {"checkpoint_text": "", "num_bytes": 0}
    job_id = UUID(response.id.removeprefix("resp_"))
    assert not producer.redis.exists(stream_log(job_id))
    late = make_event(1, EventType.TOKEN, index=0, text="secret", token_ids=[1])
    writer = StreamWriter(producer.redis)
    writer.append([Append(job_id, 1, [late], is_final=True, resets_log=True)])
    assert not producer.redis.exists(stream_log(job_id))


async def test_a_waiting_response_is_cancelled_and_deleted(
    client: openai.AsyncOpenAI, owner: DictConnection
) -> None:
    started = await client.responses.create(model="tiny", input="hello", background=True)

    await client.responses.delete(started.id)

    row = owner.execute("SELECT status, deleted_at IS NOT NULL AS is_deleted FROM jobs").fetchone()
    assert row == {"status": "cancelled", "is_deleted": True}


async def test_a_response_that_does_not_end_is_not_deleted(
    client: openai.AsyncOpenAI, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "DELETE_WAIT_S", 0.1)
    started = await client.responses.create(model="tiny", input="hello", background=True)
    job = producer.claim()

    with pytest.raises(openai.InternalServerError) as error:
        await client.responses.delete(started.id)
    assert error.value.status_code == 503
    assert int(error.value.response.headers["retry-after"]) > 0
    assert (await client.responses.retrieve(started.id)).status == "in_progress"

    producer.finish(job)
    await client.responses.delete(started.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(started.id)


async def test_a_conversation_that_lost_a_turn_is_not_gone_on_with(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    first = await answered(client, owner, producer, "a", input="one")
    second = await answered(
        client, owner, producer, "b", input="two", previous_response_id=first.id
    )
    await client.responses.delete(first.id)

    with pytest.raises(openai.NotFoundError) as error:
        await client.responses.create(model="tiny", input="x", previous_response_id=second.id)

    assert error.value.code == "previous_response_not_found"


async def test_a_conversation_is_bounded_in_bytes(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    first = await answered(client, owner, producer, "a", input="one")
    second = await answered(
        client, owner, producer, "b", input="two", previous_response_id=first.id
    )
    owner.execute(
        "UPDATE job_payloads SET request = request || jsonb_build_object('input',"
        " repeat('x', 9000000)) WHERE job_id = %s",
        (second.id.removeprefix("resp_"),),
    )

    with pytest.raises(openai.BadRequestError) as error:
        await client.responses.create(model="tiny", input="x", previous_response_id=second.id)

    assert error.value.param == "previous_response_id"
    assert "8 MiB" in error.value.message


async def test_who_waits_long_looks_less_often(
    client: openai.AsyncOpenAI, http: httpx.AsyncClient, owner: DictConnection
) -> None:
    started = await client.responses.create(model="tiny", input="hello", background=True)

    pauses = []
    for age_s in (0, 20, 3_000):
        owner.execute("UPDATE jobs SET created_at = now() - make_interval(secs => %s)", (age_s,))
        answer = await http.get(f"/v1/responses/{started.id}")
        pauses.append(int(answer.headers["openai-poll-after-ms"]))

    assert pauses[0] < 1_000
    assert 2_000 <= pauses[1] < 3_000
    assert pauses[2] == 5_000


async def test_input_is_counted_though_parts_are_missing(
    client: openai.AsyncOpenAI, owner: DictConnection, producer: Producer
) -> None:
    first = await answered(client, owner, producer, "a", input="one")
    count = client.responses.input_tokens.count

    of_previous = await count(previous_response_id=first.id)
    with_more = await count(previous_response_id=first.id, input="and two")
    of_instructions = await count(model="tiny", instructions="Be brief.")

    assert 0 < of_previous.input_tokens < with_more.input_tokens
    assert of_instructions.input_tokens > 0
    for body in ({"model": "tiny"}, {"input": "x"}, {"model": "nosuch", "input": "x"}):
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            await count(**body)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"text": {"format": {"type": "json_schema", "name": "no spaces", "schema": {}}}},
        {"text": {"format": {"type": "json_schema", "name": "x" * 65, "schema": {}}}},
        {
            "tools": [{"type": "function", "name": "f", "parameters": {}}],
            "include": ["message.output_text.logprobs"],
        },
    ],
)
async def test_what_can_not_be_is_refused(
    client: openai.AsyncOpenAI, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="tiny", input="x", **fields)
