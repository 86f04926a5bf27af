"""The official Python SDK: tools."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.compat.requests import CLOCK, MODEL, WEATHER, WEATHER_QUESTION
from tests.compat.strict_types import assert_fits
from tests.compat.test_openai_chat import documents_of

CHOICES = {
    "auto": "auto",
    "required": "required",
    "named": {"type": "function", "function": {"name": "get_weather"}},
}


def ask(client: openai.OpenAI, messages: list[Any] = WEATHER_QUESTION, **fields: Any) -> Any:
    arguments: dict[str, Any] = {"tools": [WEATHER], "temperature": 0, "max_tokens": 80}
    return client.chat.completions.create(
        model=MODEL, messages=messages, **(arguments | fields)
    ).choices[0]


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_a_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI, choice: Any) -> None:
    answer = ask(client, tool_choice=choice)

    assert answer.finish_reason == "tool_calls"
    call = answer.message.tool_calls[0]
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("limit", [1, 3, 6, 9, 12, 14])
def test_of_a_call_that_is_cut_nothing_is_text(
    client: openai.OpenAI, choice: Any, limit: int
) -> None:
    cut = ask(client, tool_choice=choice, max_tokens=limit)

    assert cut.finish_reason == "length"
    assert not cut.message.content
    for call in cut.message.tool_calls or ():
        assert call.function.name == "get_weather"
        assert '{"city": "Paris"}'.startswith(call.function.arguments)


def test_a_named_tool_is_the_one_called(client: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    answer = ask(client, tools=[WEATHER, CLOCK], tool_choice=choice)

    assert [call.function.name for call in answer.message.tool_calls] == ["get_time"]


def test_no_tool_is_called_where_none_may_be(client: openai.OpenAI) -> None:
    answer = ask(client, tool_choice="none")

    assert answer.message.tool_calls is None
    assert answer.message.content


def test_deltas_of_a_call_add_up_to_it(client: openai.OpenAI) -> None:
    documents = documents_of(
        client,
        messages=WEATHER_QUESTION,
        tools=[WEATHER],
        tool_choice="required",
        temperature=0,
        max_tokens=80,
    )

    for document in documents:
        assert_fits(ChatCompletionChunk, document)
    choices = [each["choices"][0] for each in documents]
    deltas = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    assert deltas[0]["id"].startswith("call_")
    assert deltas[0]["function"]["name"] == "get_weather"
    assert all("id" not in delta for delta in deltas[1:])
    arguments = "".join(delta["function"]["arguments"] for delta in deltas)
    assert json.loads(arguments) == {"city": "Paris"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_the_stream_helper_puts_a_call_together(client: openai.OpenAI) -> None:
    class GetWeather(pydantic.BaseModel):
        city: str

    with client.chat.completions.stream(
        model=MODEL,
        messages=WEATHER_QUESTION,
        tools=[openai.pydantic_function_tool(GetWeather, name="get_weather")],
        tool_choice="required",
        temperature=0,
        max_tokens=80,
    ) as stream:
        final = stream.get_final_completion()

    [call] = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(city="Paris")


def test_the_result_of_a_call_goes_back_to_the_model(client: openai.OpenAI) -> None:
    message = ask(client, tool_choice="required").message
    call = message.tool_calls[0]
    result = {"temperature": 17, "condition": "rainy"}

    answer = ask(
        client,
        [
            *WEATHER_QUESTION,
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)},
        ],
    )

    assert answer.finish_reason == "stop"
    assert "17" in answer.message.content
