"""Which requests are refused, and as what."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.unit.engine.requests import MODEL, engine_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.validation import check_request

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt_token_ids": []}, "invalid_prompt"),
    ({"prompt_token_ids": [-1]}, "invalid_prompt"),
    ({"prompt_token_ids": [MODEL.vocab_size]}, "invalid_prompt"),
    ({"generated_token_ids": [MODEL.vocab_size]}, "invalid_prompt"),
    ({"prompt_token_ids": [1] * 100}, "context_length_exceeded"),
    ({"generated_token_ids": [1] * 98}, "context_length_exceeded"),
    ({"grammar": "{}"}, "unsupported"),
    ({"max_tokens": 0}, "invalid_request"),
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
        {"generated_token_ids": [1] * 97},
        {"seed": -(2**63)},
        {"seed": 2**64},
    ],
)
def test_servable_request_is_accepted(fields: dict[str, Any]) -> None:
    check_request(engine_request(**fields), MODEL)
