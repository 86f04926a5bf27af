"""Attention over pages against plain arithmetic, in all shapes that models have."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.triton_interpreter import multiply_bf16
from tests.support.triton_kernels import kernel_device
from workers.inference.engine.cuda.launch import Formula, choose_num_splits
from workers.inference.engine.cuda.trial import Span, Trial
from workers.inference.engine.kv_cache import KVShape

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = st.sampled_from(list(TOLERANCES))
HEAD_DIMS = st.sampled_from([64, 80, 96, 128, 256])
# Around the ends of pages and of blocks of keys.
LENGTHS = st.one_of(st.sampled_from([1, 2, 15, 16, 17, 32, 63, 64, 65, 129]), st.integers(1, 300))


@pytest.fixture(autouse=True)
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_bf16(monkeypatch)


@st.composite
def prefills(draw: st.DrawFn) -> Span:
    length = draw(LENGTHS)
    num_tokens = draw(st.one_of(st.just(length), st.integers(1, length)))
    return Span(length - num_tokens, num_tokens)


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    num_kv_heads, group, head_dim = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 8)),
        draw(HEAD_DIMS),
    )
    decodes = [Span(length - 1, 1) for length in draw(st.lists(LENGTHS, max_size=3))]
    chunks = draw(st.lists(prefills(), min_size=0 if decodes else 1, max_size=2))
    return Trial(
        num_heads=num_kv_heads * group,
        shape=KVShape(1, num_kv_heads, head_dim, draw(DTYPES)),
        formula=Formula(
            scale=draw(st.sampled_from([head_dim**-0.5, 0.3])),
            window=draw(st.sampled_from([0, 0, 1, 5, 16, 40, 100])),
            softcap=draw(st.sampled_from([0.0, 0.0, 2.0, 30.0])),
        ),
        spans=(*decodes, *chunks),
        num_decodes=len(decodes),
        num_splits=draw(st.sampled_from([1, 2, 4, 8])),
        seed=draw(st.integers(0, 100)),
    )


def error_of(trial: Trial) -> float:
    """The largest relative error of a token."""
    found, expected = trial.run(kernel_device())
    difference = (found.float() - expected).flatten(1).norm(dim=1)
    return float((difference / expected.flatten(1).norm(dim=1)).max())


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(trials())
def test_attention_is_what_plain_arithmetic_makes_of_it(trial: Trial) -> None:
    assert error_of(trial) < TOLERANCES[trial.shape.dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("num_splits", [1, 8, 32])
@pytest.mark.parametrize("window", [0, 500])
def test_long_decodes_are_the_same_in_any_number_of_splits(
    dtype: torch.dtype, num_splits: int, window: int
) -> None:
    trial = Trial(
        num_heads=4,
        shape=KVShape(1, 1, 64, dtype),
        formula=Formula(0.125, window),
        spans=[Span(length - 1, 1) for length in (1, 255, 256, 257, 2_500)],
        num_decodes=5,
        num_splits=num_splits,
    )

    assert error_of(trial) < TOLERANCES[dtype]


def test_decodes_are_cut_only_as_far_as_the_device_has_room_and_the_context_has_keys() -> None:
    assert choose_num_splits(8, 132, 100_000) == 32  # one sequence of 8 KV heads
    assert choose_num_splits(64 * 8, 132, 100_000) == 1
    assert choose_num_splits(8, 132, 1_000) == 4
    assert choose_num_splits(8, 132, 100) == 1
