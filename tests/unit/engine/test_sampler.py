"""The vectorised sampler against a plain reference, one row and one rule at a time."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from tests.unit.engine.requests import running_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import filter_logits, sample

VOCAB = 50


def logits(rows: int, *, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def reference_probabilities(row: list[float], params: dict[str, Any]) -> list[float]:
    """Temperature, top_k, top_p, min_p in that order, in plain Python."""
    weights = [math.exp((x - max(row)) / params["temperature"]) for x in row]
    order = sorted(range(len(row)), key=lambda i: -weights[i])
    kept = order[: params.get("top_k") or len(order)]
    total, mass, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        nucleus.append(i)
        mass += weights[i] / total
        if mass >= params.get("top_p", 1.0):
            break
    floor = params.get("min_p", 0.0) * max(weights)
    final = {i: weights[i] for i in nucleus if weights[i] >= floor}
    return [final.get(i, 0.0) / sum(final.values()) for i in range(len(row))]


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]


def test_filtered_distribution_equals_the_reference_row_by_row() -> None:
    scores = logits(len(CASES))

    filtered = filter_logits(scores, [running_request(**case) for case in CASES]).softmax(-1)

    for row, case in enumerate(CASES):
        expected = reference_probabilities(scores[row].tolist(), case)
        assert filtered[row].tolist() == pytest.approx(expected, abs=1e-5), case


def test_nucleus_wider_than_the_candidates_is_exact() -> None:
    case: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95}
    scores = logits(1, vocab=2000) / 10  # nearly flat: the nucleus has well over 256 tokens

    filtered = filter_logits(scores, [running_request(**case)]).softmax(-1)

    expected = reference_probabilities(scores[0].tolist(), case)
    assert filtered[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_draws_follow_the_distribution() -> None:
    num_draws = 20_000
    scores = logits(1, vocab=8).expand(num_draws, -1).clone()
    requests = [running_request(temperature=1.0, seed=seed) for seed in range(num_draws)]

    counts = Counter(sample(scores.clone(), requests))

    for token, probability in enumerate(scores[0].softmax(-1).tolist()):
        tolerance = 5 * math.sqrt(probability * (1 - probability) / num_draws) + 1e-3
        assert counts[token] / num_draws == pytest.approx(probability, abs=tolerance)


def test_draw_depends_on_seed_and_position_only() -> None:
    scores = torch.zeros(4, VOCAB)
    first, second = running_request(seed=1), running_request(seed=2)
    later = running_request(seed=1, generated_token_ids=[9])

    together = sample(scores.clone(), [first, second, later, running_request(seed=1)])
    alone = sample(scores[:1].clone(), [first])

    assert together[0] == together[3] == alone[0]
    assert len(set(together)) == 3


def test_positions_of_one_seed_draw_evenly() -> None:
    drawn = Counter(
        sample(torch.zeros(1, 4), [running_request(seed=5, generated_token_ids=[1] * i)])[0]
        for i in range(9)
    )

    assert len(drawn) > 1


def test_greedy_takes_the_best_beside_drawn_rows() -> None:
    scores = logits(3)
    requests: list[Request] = [
        running_request(temperature=temperature, seed=0) for temperature in (0.0, 1.0, 0.0)
    ]

    tokens = sample(scores.clone(), requests)

    assert [tokens[0], tokens[2]] == scores.argmax(-1)[[0, 2]].tolist()


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
        prompt_token_ids=[3], generated_token_ids=[1, 1, 2], temperature=0.0, **params
    )
    scores = torch.tensor([[1.0, 2.0, -1.0, 4.0]])

    sample(scores, [request])

    assert scores[0].tolist() == pytest.approx(expected)


def test_row_that_is_not_a_number_fails_alone() -> None:
    scores = logits(2)
    scores[0, 3] = math.nan

    spoilt, token = sample(scores, [running_request(seed=0), running_request(seed=0)])

    assert isinstance(spoilt, EngineError)
    assert spoilt.retryable
    assert isinstance(token, int)


def test_request_that_can_not_be_adjusted_fails_alone() -> None:
    broken = running_request(logit_bias={10_000: 1.0})

    failed, token = sample(logits(2), [broken, running_request()])

    assert isinstance(failed, EngineError)
    assert failed.code == "engine_error"
    assert isinstance(token, int)
