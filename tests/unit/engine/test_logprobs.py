"""Log-probabilities against log_softmax."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.unit.engine.requests import running_request
from workers.inference.engine.executor import SampledToken
from workers.inference.engine.protocol import TokenLogprobs
from workers.inference.engine.request import Request
from workers.inference.engine.sampler import sample


def logits(rows: int, vocab: int) -> torch.Tensor:
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0))


def logprobs_of(scores: torch.Tensor, requests: list[Request]) -> list[TokenLogprobs | None]:
    results = sample(scores.clone(), requests)
    tokens = [result for result in results if isinstance(result, SampledToken)]
    assert len(tokens) == len(requests)
    assert all(t.logprobs is None or t.logprobs.token_id == t.token_id for t in tokens)
    return [token.logprobs for token in tokens]


@pytest.mark.parametrize("vocab", [50, 5000])
@pytest.mark.parametrize("limit", [0, 1, 5, 20])
def test_logprobs_are_those_of_log_softmax_whatever_the_temperature(limit: int, vocab: int) -> None:
    scores = logits(4, vocab)
    choices: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.9, "seed": 2, "top_p": 0.99},
        {"temperature": 0.2, "seed": 3, "top_k": 3},
    ]

    found = logprobs_of(scores, [running_request(logprobs=limit, **choice) for choice in choices])

    for row, logprobs in zip(scores.double().log_softmax(-1), found, strict=True):
        assert logprobs is not None
        assert logprobs.logprob == pytest.approx(float(row[logprobs.token_id]), abs=1e-5)
        best = row.sort(descending=True)
        assert [token for token, _ in logprobs.top] == best.indices[:limit].tolist()
        expected = best.values[:limit].tolist()
        assert [value for _, value in logprobs.top] == pytest.approx(expected, abs=1e-5)


def test_only_rows_that_ask_get_logprobs_each_its_own_number() -> None:
    wanted = [None, 3, 0, None, 7]
    scores = logits(5, 50)

    found = logprobs_of(scores, [running_request(logprobs=n, temperature=0.0) for n in wanted])

    assert [None if f is None else len(f.top) for f in found] == wanted
    assert found[1] is not None
    assert found[1].top[0][0] == int(scores[1].argmax())


def test_logprobs_count_penalties_and_bias() -> None:
    scores = torch.zeros(1, 4)
    request = running_request(
        generated_token_ids=[[2]], presence_penalty=1.0, logit_bias={1: 2.0}, logprobs=4
    )

    (logprobs,) = logprobs_of(scores, [request])

    expected = torch.tensor([0.0, 2.0, -1.0, 0.0]).log_softmax(-1).tolist()
    assert logprobs is not None
    assert [token for token, _ in logprobs.top] == [1, 0, 3, 2]
    assert dict(logprobs.top) == pytest.approx(dict(enumerate(expected)), abs=1e-6)


def test_impossible_tokens_are_no_candidates() -> None:
    scores = torch.tensor([[-math.inf, 1.0, 1.0, -math.inf]])

    (logprobs,) = logprobs_of(scores, [running_request(logprobs=4, temperature=0.0)])

    half = pytest.approx(math.log(0.5), abs=1e-6)
    assert logprobs is not None
    assert logprobs.token_id == 1
    assert logprobs.logprob == half
    assert dict(logprobs.top) == {1: half, 2: half}
