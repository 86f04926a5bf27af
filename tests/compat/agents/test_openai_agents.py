"""The OpenAI Agents SDK, with responses and with chat completions."""

from __future__ import annotations

import agents
import openai
import pydantic
import pytest

from tests.compat.requests import MODEL

QUESTION = "What is the weather in Paris?"
SETTINGS = agents.ModelSettings(temperature=0, max_tokens=80, tool_choice="required")
MODELS = [agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel]

agents.set_tracing_disabled(True)


class Place(pydantic.BaseModel):
    """A city that somebody asks about."""

    city: str = pydantic.Field(max_length=40)


@pytest.fixture(params=MODELS, ids=["responses", "chat"])
def model(request: pytest.FixtureRequest, async_client: openai.AsyncOpenAI) -> agents.Model:
    model: agents.Model = request.param(model=MODEL, openai_client=async_client)
    return model


@pytest.fixture
def asked() -> list[str]:
    """The cities that the tool was called with."""
    return []


@pytest.fixture
def agent(model: agents.Model, asked: list[str]) -> agents.Agent:
    """It has to call its tool first, and answers then."""

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Get the weather of a city."""
        asked.append(city)
        return "sunny"

    return agents.Agent(
        name="weather",
        instructions="Be brief.",
        model=model,
        tools=[get_weather],
        model_settings=SETTINGS,
    )


async def test_a_tool_is_run_and_its_result_answered(agent: agents.Agent, asked: list[str]) -> None:
    result = await agents.Runner.run(agent, QUESTION)

    assert asked == ["Paris"]
    assert result.final_output
    usage = result.context_wrapper.usage
    assert (usage.requests, usage.total_tokens) == (2, usage.input_tokens + usage.output_tokens)
    assert usage.output_tokens > 0


async def test_a_stream_tells_of_the_call_and_of_the_answer(
    agent: agents.Agent, asked: list[str]
) -> None:
    result = agents.Runner.run_streamed(agent, QUESTION)
    events = [event async for event in result.stream_events()]

    told = [event.name for event in events if event.type == "run_item_stream_event"]
    assert told == ["tool_called", "tool_output", "message_output_created"]
    raw = [event.data for event in events if event.type == "raw_response_event"]
    text = "".join(e.delta for e in raw if e.type == "response.output_text.delta")
    assert (text, asked) == (result.final_output, ["Paris"])
    assert [event.type for event in raw].count("response.completed") == 2


async def test_a_session_goes_on(agent: agents.Agent) -> None:
    session = agents.SQLiteSession("1")
    first = await agents.Runner.run(agent, QUESTION, session=session)

    second = await agents.Runner.run(agent, "What is a service tier?", session=session)

    assert second.final_output
    assert second.to_input_list()[: len(first.to_input_list())] == first.to_input_list()
    session.close()


async def test_the_answer_is_an_object_of_a_class(model: agents.Model) -> None:
    agent = agents.Agent(
        name="place",
        model=model,
        output_type=Place,
        model_settings=agents.ModelSettings(temperature=0, max_tokens=80),
    )

    assert (await agents.Runner.run(agent, QUESTION)).final_output == Place(city="Paris")


async def test_one_agent_hands_over_to_the_other(model: agents.Model, agent: agents.Agent) -> None:
    front = agents.Agent(
        name="front", model=model, handoffs=[agent], model_settings=SETTINGS, instructions="Help."
    )

    result = await agents.Runner.run(front, QUESTION)

    assert result.last_agent is agent
    assert result.final_output


@pytest.mark.parametrize("model", MODELS[:1], indirect=True, ids=["responses"])
async def test_the_server_keeps_the_turns(agent: agents.Agent) -> None:
    first = await agents.Runner.run(agent, QUESTION, auto_previous_response_id=True)

    second = await agents.Runner.run(
        agent, "What is a service tier?", previous_response_id=first.last_response_id
    )

    # All that was said before is in the prompt.
    before, after = (r.raw_responses[-1].usage.input_tokens for r in (first, second))
    assert after > before
