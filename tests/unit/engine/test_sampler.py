"""The sampler as a whole: what it chooses, what a draw depends on, and whose fault fails whom."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.unit.engine.requests import running_request
from workers.inference.engine.errors import EngineError
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import sample

VOCAB = 50
WIDE = 5000  # columns, so that rows are worked on in blocks


def logits(rows: int, *, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def sampled(scores: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Token ids; fails where there is an error. `scores` stay as they are."""
    tokens = []
    for result in sample(scores.clone(), requests):
        assert isinstance(result, SampledToken), result
        tokens.append(result.token_id)
    return tokens


def chi_square(counts: Counter[int], probabilities: Sequence[float]) -> float:
    """How many standard deviations the counts are worse than a fair draw's."""
    num_draws, freedom = sum(counts.values()), len(probabilities) - 1
    expected = [num_draws * probability for probability in probabilities]
    assert min(expected) > 5, "a cell too small for the test"
    statistic = sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected))
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("vocab", [8, 300])
def test_draws_follow_the_distribution(vocab: int) -> None:
    scores = logits(1, vocab=vocab) / 6
    requests = [running_request(temperature=1.0, seed=seed) for seed in range(20_000)]

    counts = Counter(sampled(scores.expand(len(requests), -1), requests))

    assert chi_square(counts, scores[0].softmax(-1).tolist()) < 4


def test_draws_over_a_wide_vocabulary_follow_the_distribution() -> None:
    scores = logits(1, vocab=WIDE) / 3
    requests = [running_request(temperature=0.7, seed=seed) for seed in range(500)]
    group_of = torch.arange(WIDE) % 20

    counts: Counter[int] = Counter()
    for position in range(10):
        for request in requests:
            request.token_ids = [1] * (3 + position)
        counts.update(t % 20 for t in sampled(scores.expand(500, -1), requests))

    groups = torch.zeros(20).index_add(0, group_of, (scores[0] / 0.7).softmax(-1))
    assert chi_square(counts, groups.tolist()) < 4


def test_draws_within_limits_follow_the_distribution_that_is_left() -> None:
    scores = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()
    requests = [running_request(temperature=1.0, top_p=0.8, seed=seed) for seed in range(10_000)]

    counts = Counter(sampled(scores.expand(len(requests), -1), requests))

    assert set(counts) == {0, 1, 2}
    assert chi_square(counts, [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85]) < 4


def test_draw_depends_on_seed_and_position_only() -> None:
    scores = torch.zeros(4, WIDE)
    first, second = running_request(seed=1), running_request(seed=2)
    later = running_request(seed=1, generated_token_ids=[[9]])

    together = sampled(scores, [first, second, later, running_request(seed=1)])
    alone = sampled(scores[:1], [first])

    assert together[0] == together[3] == alone[0]
    assert len(set(together)) == 3


def mixed_sampling(i: int) -> dict[str, Any]:
    choices: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 0.3 + i / 50},
        {"temperature": 0.7, "top_k": 2 + i},
        {"temperature": 1.3, "min_p": i / 400},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 30, "frequency_penalty": 0.5},
        {"temperature": 1.0, "repetition_penalty": 1.3, "logit_bias": {7: 2.0}},
        {"temperature": 1.0, "min_tokens": 50, "stop_token_ids": (3,)},
    ]
    return choices[i % len(choices)]


def test_same_seed_gives_the_same_tokens_alone_and_beside_31_others() -> None:
    def batch() -> list[Request]:
        return [running_request(seed=i, max_tokens=60, **mixed_sampling(i)) for i in range(32)]

    alone, together = batch(), batch()
    for position in range(30):
        scores = logits(32, vocab=WIDE, seed=position)
        for request, token in zip(together, sampled(scores, together), strict=True):
            request.token_ids.append(token)
        for row, request in enumerate(alone):
            request.token_ids += sampled(scores[row : row + 1], [request])

    assert [r.token_ids for r in alone] == [r.token_ids for r in together]


def test_draw_goes_on_after_a_continuation_as_if_nothing_had_happened() -> None:
    params: dict[str, Any] = {"seed": 4, "top_p": 0.9, "frequency_penalty": 0.4}
    whole = running_request(**params)
    for position in range(6):
        whole.token_ids += sampled(logits(1, seed=position), [whole])

    for cut in range(6):
        rest = running_request(generated_token_ids=[whole.token_ids[3 : 3 + cut]], **params)
        for position in range(cut, 6):
            rest.token_ids += sampled(logits(1, seed=position), [rest])
        assert rest.token_ids == whole.token_ids


def test_sampling_the_same_step_twice_gives_the_same_tokens() -> None:
    requests = [running_request(seed=i, **mixed_sampling(i)) for i in range(7)]
    scores = logits(7, vocab=WIDE)

    assert sampled(scores, requests) == sampled(scores, requests)


@pytest.mark.parametrize("vocab", [50, 4096, 5000, 50_257])
def test_greedy_takes_the_first_of_the_best(vocab: int) -> None:
    scores = logits(6, vocab=vocab)
    scores[1] = 0.0
    scores[2, [vocab - 1, vocab - 2]] = 99.0
    scores[3, [5, vocab - 1]] = 99.0
    requests = [running_request(temperature=0.0) for _ in range(6)]

    tokens = sampled(scores, requests)

    assert tokens == scores.argmax(-1).tolist()
    assert tokens[1:4] == [0, vocab - 2, 5]


def test_greedy_takes_the_best_beside_drawn_rows() -> None:
    scores = logits(3)
    requests = [running_request(temperature=t, seed=0) for t in (0.0, 1.0, 0.0)]

    tokens = sampled(scores, requests)

    assert [tokens[0], tokens[2]] == scores.argmax(-1)[[0, 2]].tolist()
    assert tokens[1] == sampled(scores[1:2], requests[1:2])[0]


@pytest.mark.parametrize("vocab", [50, 5000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_row_that_is_not_a_number_fails_alone(value: float, temperature: float, vocab: int) -> None:
    scores = logits(3, vocab=vocab)
    scores[0, 3] = value
    scores[1] = math.nan
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": 0.9, "top_k": 20, "seed": 0}

    *spoilt, token = sample(scores, [running_request(**sampling) for _ in range(3)])

    for error in spoilt:
        assert isinstance(error, EngineError)
        assert error.retryable
    assert isinstance(token, SampledToken)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_row_without_a_possible_token_fails_alone(temperature: float) -> None:
    scores = logits(2)
    scores[0] = -math.inf

    failed, token = sample(scores, [running_request(temperature=temperature) for _ in range(2)])

    assert isinstance(failed, EngineError)
    assert (failed.code, failed.retryable) == ("engine_error", False)
    assert isinstance(token, SampledToken)


@pytest.mark.parametrize("broken", [{"logit_bias": {10_000: 1.0}}, {"logit_bias": {1: math.nan}}])
def test_request_that_can_not_be_adjusted_fails_alone(broken: dict[str, Any]) -> None:
    scores = logits(3)
    requests = [running_request(), running_request(**broken), running_request()]
    expected = sampled(scores[[0, 2]], [requests[0], requests[2]])

    first, failed, last = sample(scores, requests)

    assert isinstance(failed, EngineError)
    assert failed.code == "engine_error"
    assert [first, last] == [SampledToken(token) for token in expected]
