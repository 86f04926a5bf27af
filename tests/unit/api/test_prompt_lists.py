"""Bodies of text completions: which prompts there may be, and what is made of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from api.generation import Generation
from api.job_limits import MAX_TOKENS_OF_PROMPTS, output_limit
from api.prompts.prompt import PromptList, TextPrompt, TokenPrompt
from api.schemas.completions import MAX_PROMPTS, CreateCompletion
from api.submitting import parse_body
from store.catalog import ModelEntry
from tasks.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter

MODEL = ModelEntry(
    name="m",
    pool="default",
    context_length=100,
    max_output_tokens=50,
    capabilities=frozenset({"completion"}),
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    asset_hashes={},
    currency="USD",
    price_version=1,
    prices={},
)


def generation(prompt: Any, **fields: Any) -> Generation:
    return parse_body(CreateCompletion, {"model": "m", "prompt": prompt, **fields}).generation()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", TextPrompt("a")),
        (["a"], TextPrompt("a")),
        ([1, 2], TokenPrompt([1, 2])),
        ([[1, 2]], TokenPrompt([1, 2])),
        (["a", "b"], PromptList([TextPrompt("a"), TextPrompt("b")])),
        ([[1, 2], [3]], PromptList([TokenPrompt([1, 2]), TokenPrompt([3])])),
    ],
)
def test_each_form_of_a_prompt(prompt: Any, expected: Any) -> None:
    assert generation(prompt).prompt == expected


def test_choices_are_those_of_all_prompts() -> None:
    assert generation(["a", "b", "c"], n=2).num_choices == 6
    assert generation(["a"] * MAX_PROMPTS).num_choices == MAX_PROMPTS


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": ["a", [1]]},
        {"prompt": ["a", 1]},
        {"prompt": [[1], ["a"]]},
        {"prompt": [[1], []]},
        {"prompt": [True]},
        {"prompt": [[-1]]},
        {"prompt": {"a": 1}},
        {"prompt": ["a"] * (MAX_PROMPTS + 1)},
        {"prompt": ["a"] * (MAX_PROMPTS // 2 + 1), "n": 2},
    ],
)
def test_what_is_no_prompt_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        generation(**fields)

    assert refused.value.param == "prompt"


def test_a_prompt_is_scored_where_it_is_echoed_with_log_probabilities() -> None:
    both = generation("a", echo=True, logprobs=0).sampling

    assert (both["logprobs"], both["prompt_logprobs"]) == (0, 0)
    assert "prompt_logprobs" not in generation("a", echo=True).sampling
    assert "prompt_logprobs" not in generation("a", logprobs=3).sampling
    with pytest.raises(UnsupportedParameter):
        generation("a", prompt_logprobs=1)


def test_no_tokens_at_all_may_be_asked_for() -> None:
    asked = generation("a", max_tokens=0)

    assert output_limit(asked, MODEL, [100]) == 0  # the prompt may fill the context then
    assert output_limit(generation("a"), MODEL, [10]) == 16
    with pytest.raises(ContextLengthExceeded):
        output_limit(asked, MODEL, [101])


def test_each_prompt_is_to_fit_and_all_of_them_together() -> None:
    asked = generation(["a", "b"], max_tokens=1)

    assert output_limit(asked, MODEL, [99, 99, 99]) == 1
    with pytest.raises(ContextLengthExceeded):
        output_limit(asked, MODEL, [3, 100])
    with pytest.raises(InvalidRequest):
        output_limit(asked, MODEL, [64] * (MAX_TOKENS_OF_PROMPTS // 64 + 1))
    large = replace(MODEL, context_length=2 * MAX_TOKENS_OF_PROMPTS)
    assert output_limit(asked, large, [MAX_TOKENS_OF_PROMPTS, MAX_TOKENS_OF_PROMPTS - 1]) == 1
