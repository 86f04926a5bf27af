"""Which requests are refused, and as what."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.unit.engine.requests import MODEL, engine_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.validation import check_fits, check_request

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt_token_ids": []}, "invalid_prompt"),
    ({"prompt_token_ids": [-1]}, "invalid_prompt"),
    ({"prompt_token_ids": [MODEL.vocab_size]}, "invalid_prompt"),
    ({"generated_token_ids": [[MODEL.vocab_size]]}, "invalid_prompt"),
    ({"prompt_token_ids": [1] * 100}, "context_length_exceeded"),
    ({"generated_token_ids": [[1] * 98]}, "context_length_exceeded"),
    ({"generated_token_ids": [[1], [1] * 98], "n": 2}, "context_length_exceeded"),
    ({"generated_token_ids": [[1]], "n": 2}, "invalid_request"),
    ({"generated_token_ids": [[1], [1]]}, "invalid_request"),
    ({"n": 0}, "invalid_request"),
    ({"n": 129}, "invalid_request"),
    ({"logprobs": -1}, "invalid_request"),
    ({"logprobs": 21}, "invalid_request"),
    ({"max_tokens": -1}, "invalid_request"),
    ({"max_tokens": math.nan}, "invalid_request"),
    ({"temperature": -0.1}, "invalid_request"),
    ({"temperature": math.nan}, "invalid_request"),
    ({"temperature": math.inf}, "invalid_request"),
    ({"top_p": 0.0}, "invalid_request"),
    ({"top_p": 1.1}, "invalid_request"),
    ({"top_k": -1}, "invalid_request"),
    ({"min_p": 1.1}, "invalid_request"),
    ({"presence_penalty": 2.1}, "invalid_request"),
    ({"frequency_penalty": -2.1}, "invalid_request"),
    ({"repetition_penalty": 0.0}, "invalid_request"),
    ({"min_tokens": -1}, "invalid_request"),
    ({"min_tokens": 11}, "invalid_request"),
    ({"stop": ("",)}, "invalid_request"),
    ({"stop_token_ids": (MODEL.vocab_size,)}, "invalid_request"),
    ({"logit_bias": {MODEL.vocab_size: 1.0}}, "invalid_request"),
    ({"logit_bias": {1: 100.1}}, "invalid_request"),
    ({"logit_bias": {1: math.nan}}, "invalid_request"),
]


@pytest.mark.parametrize(("fields", "code"), REFUSED)
def test_unservable_request_is_refused(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(EngineError) as refused:
        check_request(engine_request(**fields), MODEL)

    assert (refused.value.code, refused.value.retryable) == (code, False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0, "top_p": 1.0, "top_k": 10**9},
        {"logit_bias": {0: -100.0, 49: 100.0}, "stop": ("a",), "stop_token_ids": (49,)},
        {"prompt_token_ids": [1] * 99},
        {"generated_token_ids": [[1] * 97]},
        {"generated_token_ids": [[], [1]], "n": 2},
        {"n": 128, "logprobs": 20},
        {"grammar": "what it says is the executor's affair"},
        {"seed": -(2**63)},
        {"seed": 2**64},
    ],
)
def test_servable_request_is_accepted(fields: dict[str, Any]) -> None:
    check_request(engine_request(**fields), MODEL)


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(22, 10), (3, 29), (31, 1)])
def test_request_that_fills_the_kv_cache_is_accepted(num_prompt: int, max_tokens: int) -> None:
    request = engine_request(num_prompt, max_tokens=max_tokens)

    check_fits(request, MODEL, num_pages=2, page_size=16)


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(23, 10), (33, 1), (3, 1000)])
def test_request_that_can_outgrow_the_kv_cache_is_refused_with_the_arithmetic(
    num_prompt: int, max_tokens: int
) -> None:
    request = engine_request(num_prompt, max_tokens=max_tokens)

    with pytest.raises(EngineError, match=r"pages of 16 tokens; the KV cache has 2$") as refused:
        check_fits(request, MODEL, num_pages=2, page_size=16)

    assert (refused.value.code, refused.value.retryable) == ("context_length_exceeded", False)
