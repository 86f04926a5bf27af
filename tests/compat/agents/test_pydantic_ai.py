"""pydantic-ai, with chat completions and with responses."""

from __future__ import annotations

from typing import Any

import openai
import pydantic
import pytest
from pydantic_ai import Agent, ModelSettings, NativeOutput, ToolOutput
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.compat.requests import MODEL

QUESTION = "What is the weather in Paris?"
SETTINGS = ModelSettings(temperature=0, max_tokens=80)
MODELS = [OpenAIChatModel, OpenAIResponsesModel]


class Place(pydantic.BaseModel):
    """A city that somebody asks about."""

    city: str = pydantic.Field(max_length=40)


@pytest.fixture(params=MODELS, ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, async_client: openai.AsyncOpenAI) -> Model:
    model: Model = request.param(MODEL, provider=OpenAIProvider(openai_client=async_client))
    return model


@pytest.mark.parametrize("way", [ToolOutput, NativeOutput], ids=["tool", "native"])
async def test_the_answer_is_an_object_of_a_class(model: Model, way: Any) -> None:
    agent = Agent(model, output_type=way(Place), model_settings=SETTINGS)

    assert (await agent.run(QUESTION)).output == Place(city="Paris")


async def test_the_object_may_be_streamed(model: Model) -> None:
    agent = Agent(model, output_type=ToolOutput(Place), model_settings=SETTINGS)
    async with agent.run_stream(QUESTION) as stream:
        parts = [part async for part in stream.stream_output(debounce_by=None)]

    assert parts[-1] == Place(city="Paris")


async def test_a_tool_is_run_and_the_next_turn_knows_of_it(model: Model) -> None:
    asked: list[str] = []
    agent = Agent(model, instructions="Be brief.", model_settings=SETTINGS)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the weather of a city."""
        asked.append(city)
        return "sunny"

    first = await agent.run(QUESTION)
    second = await agent.run("What is a service tier?", message_history=first.all_messages())

    assert asked == ["Paris"]
    assert (first.usage.requests, first.usage.tool_calls) == (2, 1)
    assert "tier" in second.output
    assert second.all_messages()[: len(first.all_messages())] == first.all_messages()


async def test_a_stream_says_what_the_answer_says(model: Model) -> None:
    agent = Agent(model, model_settings=SETTINGS)
    whole = await agent.run("What is a service tier?")

    async with agent.run_stream("What is a service tier?") as stream:
        text = "".join([part async for part in stream.stream_text(delta=True, debounce_by=None)])

    assert text == whole.output
    assert stream.usage.output_tokens == whole.usage.output_tokens > 0
