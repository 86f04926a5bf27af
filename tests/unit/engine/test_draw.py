"""top_k, top_p and min_p against a plain sort, one row and one rule at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.unit.engine.requests import running_request
from workers.inference.engine.protocol import SamplingParams
from workers.inference.engine.sampling.best import top
from workers.inference.engine.sampling.draw import (
    above,
    cut_to_min_p,
    cut_to_top_k,
    draw,
    nucleus_mass,
    tempered,
    total,
)


def random_row(vocab: int, *, scale: float, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))


def distribution(row: torch.Tensor, **sampling: Any) -> list[float]:
    """What a draw from row [V] follows: each token is asked whether it lies inside."""
    params = SamplingParams(max_tokens=1, **sampling)
    weights = tempered(row[None], [params.temperature])
    cut_to_top_k(weights, [params.top_k])
    wanted = nucleus_mass(weights, [params.top_p])
    cut_to_min_p(weights, [params.min_p])
    kept = weights[0, : len(row)].double()
    if wanted is not None:
        sums = [total(above(weights, weight.view(1, 1))) for weight in weights[0, : len(row)]]
        kept = torch.where(torch.cat(sums) < wanted, kept, 0.0)
    return [float(x) for x in kept / kept.sum()]


def reference(row: list[float], **sampling: Any) -> list[float]:
    """Temperature, top_k, top_p, min_p in that order, in plain Python."""
    best, temperature = max(row), sampling.get("temperature", 1.0)
    weights = [math.exp((x - best) / temperature) for x in row]
    order = sorted(range(len(row)), key=lambda i: -weights[i])
    kept = order[: sampling.get("top_k") or len(order)]
    whole, mass, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        nucleus.append(i)
        mass += weights[i] / whole
        if mass >= sampling.get("top_p", math.inf):
            break
    floor = sampling.get("min_p", 0.0) * max(weights)
    final = {i: weights[i] for i in nucleus if weights[i] >= floor}
    return [final.get(i, 0.0) / sum(final.values()) for i in range(len(row))]


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "top_p": 1e-300},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 2.0, "top_k": 3, "top_p": 0.99, "min_p": 0.3},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("vocab", [50, 1000])
def test_limits_leave_what_the_reference_leaves(
    case: dict[str, Any], scale: float, vocab: int
) -> None:
    row = random_row(vocab, scale=scale)

    left = distribution(row, **case)

    expected = reference(row.tolist(), **case)
    smallest = 1e-30  # what float32 can't tell from 0 is never drawn
    assert [p > smallest for p in left] == [p > smallest for p in expected]
    assert left == pytest.approx(expected, abs=1e-6)


def test_draw_takes_the_nucleus_of_all_that_top_k_leaves_and_min_p_of_the_nucleus() -> None:
    """Of what min_p leaves here, the nucleus would be a token less."""
    row = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04]).log()
    requests = [
        running_request(seed=seed, temperature=1.0, top_p=0.85, min_p=0.15) for seed in range(400)
    ]

    tokens, is_drawn = draw(row.repeat(400, 1), requests)

    assert is_drawn.all()
    assert set(tokens.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_nucleus_of_a_wide_vocabulary_ends_where_a_sort_ends_it(scale: float) -> None:
    row = random_row(50_000, scale=scale)
    weights = tempered(row[None], [1.0])
    ordered = row.double().softmax(-1).sort(descending=True)
    before = ordered.values.cumsum(-1) - ordered.values

    for top_p in (0.001, 0.1, 0.5, 0.9, 0.99):
        last = int((before < top_p).sum()) - 1
        around = ordered.indices[max(last - 2, 0) : last + 3]
        chosen = weights[0, around][:, None]
        inside = total(above(weights.expand(len(around), -1), chosen)) < top_p * total(weights)
        assert inside.tolist() == [rank <= last for rank in range(max(last - 2, 0), last + 3)]


def test_limits_keep_all_that_tie_with_the_last_one_inside() -> None:
    row = torch.tensor([0.4, 0.2, 0.2, 0.1, 0.1]).log()

    assert [p > 0 for p in distribution(row, top_k=2)] == [True, True, True, False, False]
    assert [p > 0 for p in distribution(row, top_p=0.5)] == [True, True, True, False, False]
    assert [p > 0 for p in distribution(row, top_p=0.3)] == [True, False, False, False, False]
    assert [p > 0 for p in distribution(torch.zeros(300), top_k=1)] == [True] * 300


@pytest.mark.parametrize("k", [1, 20, 100, 5000])
@pytest.mark.parametrize("vocab", [5000, 49_152, 50_257])
def test_top_finds_the_k_best(vocab: int, k: int) -> None:
    rows = torch.stack([random_row(vocab, scale=1.0, seed=seed) for seed in range(3)])
    rows[0, -1] = rows[1, 0] = 99.0
    rows[2, 100:] = -math.inf

    values, indices = top(rows, k)

    assert torch.equal(values, rows.sort(descending=True).values[:, :k])
    assert torch.equal(rows.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())
