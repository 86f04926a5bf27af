"""Penalties, bias and min_tokens against plain code that looks at all tokens at every step."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from tests.unit.engine.requests import running_request
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import sample
from workers.inference.engine.sampling.penalties import adjust

VOCAB = 50


def naive(row: list[float], request: Request) -> list[float]:
    """What `adjust` must make of the logits of one request."""
    params, adjusted = request.sampling, list(row)
    if params.repetition_penalty != 1:
        for token in set(request.token_ids):
            is_positive = adjusted[token] > 0
            adjusted[token] *= params.repetition_penalty ** (-1 if is_positive else 1)
    for token, count in Counter(request.token_ids[request.num_prompt :]).items():
        adjusted[token] -= params.presence_penalty + params.frequency_penalty * count
    for token, bias in params.logit_bias.items():
        adjusted[token] += bias
    for token in request.suppressed_token_ids:
        adjusted[token] = -math.inf
    return adjusted


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [1.0, 2.0, -1.0, 4.0]),
        ({"presence_penalty": 0.5}, [1.0, 1.5, -1.5, 4.0]),
        ({"frequency_penalty": 0.5}, [1.0, 1.0, -1.5, 4.0]),
        ({"repetition_penalty": 2.0}, [1.0, 1.0, -2.0, 2.0]),
        ({"logit_bias": {0: 3.0, 3: -1.0}}, [4.0, 2.0, -1.0, 3.0]),
        ({"min_tokens": 9, "stop_token_ids": (3,)}, [-math.inf, 2.0, -1.0, -math.inf]),
    ],
)
def test_penalties_and_bias_change_the_right_logits(
    params: dict[str, Any], expected: list[float]
) -> None:
    # The prompt is token 3; tokens 1, 1 and 2 were generated.
    request = running_request(
        prompt_token_ids=[3], generated_token_ids=[[1, 1, 2]], temperature=0.0, **params
    )
    scores = torch.tensor([[1.0, 2.0, -1.0, 4.0]])

    sample(scores, [request])

    assert scores[0].tolist() == pytest.approx(expected)


PARAMS: list[dict[str, Any]] = [
    {},
    {"presence_penalty": 1.5, "frequency_penalty": -0.3},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": {4: 5.0, 49: -2.5}},
    {"logit_bias": {0: -100.0}, "min_tokens": 4, "stop_token_ids": (7, 11)},
    {"presence_penalty": -2.0, "repetition_penalty": 1.2, "min_tokens": 6},
]


def test_a_batch_followed_step_by_step_equals_plain_code() -> None:
    chance = random.Random(5)
    prompts = [[chance.randrange(VOCAB) for _ in range(5)] for _ in range(12)]
    requests = [
        running_request(prompt_token_ids=prompt, max_tokens=90, **PARAMS[i % len(PARAMS)])
        for i, prompt in enumerate(prompts)
    ]

    for position in range(80):  # beyond what the counts hold at first
        scores = torch.randn(12, VOCAB, generator=torch.Generator().manual_seed(position))
        expected = [naive(row, r) for row, r in zip(scores.tolist(), requests, strict=True)]
        assert adjust(scores, requests) == {}
        assert scores.tolist() == [pytest.approx(row, abs=1e-5) for row in expected]
        for request in requests:
            request.token_ids.append(chance.randrange(VOCAB))
        chance.shuffle(requests)


def test_tokens_that_came_by_continuation_count_like_sampled_ones() -> None:
    params: dict[str, Any] = {"frequency_penalty": 1.0, "repetition_penalty": 1.5}
    stepped = running_request(prompt_token_ids=[2], **params)
    for token in (1, 3, 1):
        adjust(torch.zeros(1, VOCAB), [stepped])
        stepped.token_ids.append(token)
    continued = running_request(prompt_token_ids=[2], generated_token_ids=[[1, 3, 1]], **params)
    scores = torch.ones(2, VOCAB)

    adjust(scores, [stepped, continued])

    assert torch.equal(scores[0], scores[1])
    assert scores[0, 1] == pytest.approx(1 / 1.5 - 2)


@pytest.mark.parametrize("token_id", [-1, VOCAB, 10_000])
def test_token_outside_the_vocabulary_touches_no_other_row(token_id: int) -> None:
    broken = running_request(logit_bias={token_id: 9.0})
    scores = torch.zeros(3, VOCAB)

    errors = adjust(scores, [running_request(), broken, running_request()])

    assert list(errors) == [1]
    assert torch.equal(scores, torch.zeros(3, VOCAB))
