"""litellm's SDK: chats, completions, responses, and what it does after an error."""

from __future__ import annotations

import json
import os
from typing import Any

import pydantic
import pytest

from tests.compat.agents.conftest import SHORT_CONTEXT, SHORT_MODEL
from tests.compat.requests import MODEL, QUESTION, WEATHER, WEATHER_QUESTION
from tests.support.member import Tenant

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or importing it asks the internet for prices

import litellm

NAME = f"openai/{MODEL}"
LONG: list[Any] = [{"role": "user", "content": "word " * 2 * SHORT_CONTEXT}]
PROMPTS = ["A service tier is", "The job is"]


class Place(pydantic.BaseModel):
    """A city that somebody asks about."""

    city: str = pydantic.Field(max_length=40)


@pytest.fixture
def access(base_url: str, tenant: Tenant) -> dict[str, Any]:
    return {"api_base": base_url, "api_key": tenant.api_key, "max_retries": 0}


@pytest.fixture
def brief(access: dict[str, Any]) -> dict[str, Any]:
    return {**access, "temperature": 0, "max_tokens": 24}


def test_a_stream_says_what_the_answer_says(brief: dict[str, Any]) -> None:
    whole = litellm.completion(NAME, QUESTION, **brief)

    chunks = litellm.completion(
        NAME, QUESTION, stream=True, stream_options={"include_usage": True}, **brief
    )
    built = litellm.stream_chunk_builder(list(chunks), messages=QUESTION)

    assert built.choices[0].message.content == whole.choices[0].message.content
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason
    assert built.usage.total_tokens == whole.usage.total_tokens > 0


async def test_an_async_stream_says_the_same(brief: dict[str, Any]) -> None:
    whole = await litellm.acompletion(NAME, QUESTION, **brief)
    parts = [part async for part in await litellm.acompletion(NAME, QUESTION, stream=True, **brief)]

    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert text == whole.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True], ids=["answer", "stream"])
def test_a_tool_is_called_and_its_result_answered(access: dict[str, Any], stream: bool) -> None:
    fields = {**access, "temperature": 0, "max_tokens": 80, "tools": [WEATHER], "stream": stream}
    answer = litellm.completion(NAME, WEATHER_QUESTION, tool_choice="required", **fields)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer))
    message = answer.choices[0].message
    [call] = message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}

    fields["stream"] = False
    last = litellm.completion(NAME, [*WEATHER_QUESTION, message, result], **fields)

    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert last.choices[0].message.content


def test_the_answer_fits_a_class(brief: dict[str, Any]) -> None:
    answer = litellm.completion(NAME, WEATHER_QUESTION, response_format=Place, **brief)

    assert Place.model_validate_json(answer.choices[0].message.content) == Place(city="Paris")


def test_cost_follows_from_the_usage(brief: dict[str, Any]) -> None:
    prices = {"input_cost_per_token": 3e-7, "output_cost_per_token": 12e-7}
    answer = litellm.completion(NAME, QUESTION, **prices, **brief)

    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens is not None
    cost = litellm.completion_cost(answer, model=NAME, custom_cost_per_token=prices)
    assert cost == pytest.approx(
        usage.prompt_tokens * 3e-7 + usage.completion_tokens * 12e-7, rel=1e-6
    )


@pytest.mark.parametrize("provider", ["openai", "text-completion-openai", "hosted_vllm"])
def test_lists_of_prompts_are_completed_in_their_order(
    brief: dict[str, Any], provider: str
) -> None:
    name = f"{provider}/{MODEL}"
    alone = [litellm.text_completion(prompt=p, model=name, **brief) for p in PROMPTS]

    together = litellm.text_completion(prompt=PROMPTS, model=name, **brief)

    texts = [choice.text for choice in together.choices]
    assert texts == [answer.choices[0].text for answer in alone]
    assert together.usage.total_tokens == sum(answer.usage.total_tokens for answer in alone)


def test_a_stream_of_lists_goes_by_index(brief: dict[str, Any]) -> None:
    name = f"text-completion-openai/{MODEL}"
    whole = litellm.text_completion(prompt=PROMPTS, model=name, n=2, **brief)
    texts = dict.fromkeys(range(4), "")
    for chunk in litellm.text_completion(prompt=PROMPTS, model=name, n=2, stream=True, **brief):
        for choice in chunk.choices:
            texts[choice.index] += choice.text or ""

    assert list(texts.values()) == [choice.text for choice in whole.choices]


def test_responses_are_given_and_continued(access: dict[str, Any]) -> None:
    fields = {**access, "model": NAME, "temperature": 0, "max_output_tokens": 24}
    first = litellm.responses(input="What is a service tier?", **fields)
    second = litellm.responses(input="And a job?", previous_response_id=first.id, **fields)
    events = list(litellm.responses(input="What is a service tier?", stream=True, **fields))

    assert second.usage.input_tokens > first.usage.input_tokens
    assert events[-1].response.output_text == first.output_text


# Errors -------------------------------------------------------------------------------------------


def test_a_prompt_that_is_too_long_goes_to_the_larger_model(access: dict[str, Any]) -> None:
    names = {"small": SHORT_MODEL, "large": MODEL}
    router = litellm.Router(
        model_list=[
            {"model_name": name, "litellm_params": {"model": f"openai/{model}", **access}}
            for name, model in names.items()
        ],
        context_window_fallbacks=[{"small": ["large"]}],
        num_retries=0,
    )

    short = router.completion("small", QUESTION, max_tokens=4)
    long = router.completion("small", LONG, max_tokens=4)

    assert (short.model, long.model) == (SHORT_MODEL, MODEL)
    assert long.usage.prompt_tokens > SHORT_CONTEXT


def test_an_overflow_has_its_own_class(access: dict[str, Any]) -> None:
    for fields in ({}, {"stream": True}):
        with pytest.raises(litellm.ContextWindowExceededError):
            litellm.completion(f"openai/{SHORT_MODEL}", LONG, **fields, **access)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.text_completion(
            model=f"text-completion-openai/{SHORT_MODEL}", prompt=LONG[0]["content"], **access
        )
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.responses(model=f"openai/{SHORT_MODEL}", input=LONG[0]["content"], **access)


def test_other_errors_have_theirs(access: dict[str, Any]) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(NAME, QUESTION, **(access | {"api_key": "mlr_live_wrong"}))
    with pytest.raises(litellm.NotFoundError):
        litellm.completion("openai/gpt-nowhere", QUESTION, **access)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(NAME, QUESTION, temperature=9, **access)
