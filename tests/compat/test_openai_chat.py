"""The official Python SDK: chat completions."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
import pydantic
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.compat.requests import MODEL, QUESTION, STORY
from tests.compat.strict_types import assert_fits

NUM_STREAMS = 100


class Answer(pydantic.BaseModel):
    """What the model is made to say."""

    urgent: bool
    tier: Literal["priority", "default", "flex", "batch"]


def chunks_of(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    arguments: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 24} | fields
    return list(client.chat.completions.create(stream=True, **arguments))


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def documents_of(client: openai.OpenAI, **fields: Any) -> list[Any]:
    """The data of each event as the wire has it."""
    arguments: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 8} | fields
    with client.chat.completions.with_streaming_response.create(
        stream=True, **arguments
    ) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [pydantic.TypeAdapter(Any).validate_json(line[6:]) for line in lines[:-1]]


def test_an_answer_has_the_fields_of_the_sdk(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, max_tokens=8, logprobs=True, top_logprobs=2, n=2
    )

    assert_fits(ChatCompletion, raw.http_response.json())
    answer = raw.parse()
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_every_chunk_has_the_fields_of_the_sdk(client: openai.OpenAI) -> None:
    documents = documents_of(
        client, n=2, logprobs=True, top_logprobs=1, stream_options={"include_usage": True}
    )

    for document in documents:
        assert_fits(ChatCompletionChunk, document)
    assert len({(each["id"], each["created"], each["model"]) for each in documents}) == 1
    assert documents[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [each["usage"] for each in documents[:-1]] == [None] * (len(documents) - 1)
    assert documents[-1]["choices"] == []
    assert documents[-1]["usage"]["completion_tokens"] == 16


def test_a_stream_says_what_the_answer_says(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=24, temperature=0
    )

    chunks = chunks_of(client, temperature=0)

    assert text_of(chunks) == answer.choices[0].message.content
    assert "priority" in text_of(chunks)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] in ("stop", "length")
    assert set(reasons[:-1]) == {None}


def test_usage_comes_only_when_asked_for(client: openai.OpenAI) -> None:
    with_usage = chunks_of(client, stream_options={"include_usage": True})
    without = chunks_of(client)

    assert with_usage[-1].choices == []
    assert with_usage[-1].usage is not None
    assert all(chunk.usage is None for chunk in [*with_usage[:-1], *without])


def test_parse_makes_a_pydantic_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, response_format=Answer, max_tokens=200
    )

    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Answer)


def test_the_stream_helper_parses_what_it_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, response_format=Answer, max_tokens=200
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()

    assert isinstance(final.choices[0].message.parsed, Answer)
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)


def test_json_mode_answers_with_an_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        response_format={"type": "json_object"},
        max_tokens=400,
        temperature=0,
    )

    content = answer.choices[0].message.content or ""
    assert content.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(pydantic.TypeAdapter(Any).validate_json(content), dict)


def test_several_choices_are_told_apart(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=STORY, n=2, seed=7, temperature=2, max_tokens=24
    )
    chunks = chunks_of(client, messages=STORY, n=2, seed=7, temperature=2)

    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [text_of(chunks, 0), text_of(chunks, 1)] == texts
    assert texts[0] != texts[1]


def test_logprobs_spell_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, logprobs=True, top_logprobs=3, max_tokens=12, temperature=0
    )

    choice = answer.choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    spelled = b"".join(bytes(token.bytes or ()) for token in content).decode()
    assert spelled.startswith(choice.message.content or "?")
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in content)
    assert all(token.token == token.top_logprobs[0].token for token in content)


def test_a_stop_string_ends_the_answer_and_stays_out(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=40
    )
    text = whole.choices[0].message.content or ""
    word = text.split()[3]

    cut = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=40, stop=[word]
    )

    assert cut.choices[0].message.content == text[: text.index(word)]
    assert cut.choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def say(seed: int) -> str:
        return text_of(chunks_of(client, messages=STORY, seed=seed, temperature=2))

    assert say(11) == say(11)
    assert say(11) != say(12)


def test_a_full_limit_is_told_as_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_completion_tokens=3, temperature=0
    )

    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_conversation_with_parts_and_roles_is_taken(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8)

    messages: list[Any] = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "What is a lane?"}]},
        first.choices[0].message.model_dump(),
        {"role": "user", "content": "And a hint?"},
    ]

    second = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_tokens=8,
        metadata={"purpose": "test"},
        user="somebody",
        service_tier="flex",
    )

    assert second.choices[0].message.content
    assert second.service_tier == "flex"


async def test_the_async_client_creates_and_streams(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, temperature=0
    )
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, temperature=0, stream=True
    )

    assert text_of([chunk async for chunk in stream]) == answer.choices[0].message.content


async def test_a_hundred_streams_at_once_stay_apart(async_client: openai.AsyncOpenAI) -> None:
    async def say(seed: int) -> str:
        stream = await async_client.chat.completions.create(
            model="demo-mini",
            messages=STORY,
            max_tokens=12,
            temperature=2,
            seed=seed,
            stream=True,
        )
        return text_of([chunk async for chunk in stream])

    # Each seed twice: whoever got another's tokens would break its pair.
    texts = await asyncio.gather(
        *[say(number % (NUM_STREAMS // 2)) for number in range(NUM_STREAMS)]
    )

    assert texts[: NUM_STREAMS // 2] == texts[NUM_STREAMS // 2 :]
    assert len(set(texts)) > NUM_STREAMS // 4
