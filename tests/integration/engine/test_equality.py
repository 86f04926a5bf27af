"""Greedy tokens are those of transformers' own generate, whatever happens on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.engine.collector import Collector
from tests.support.tiny_models import (
    ARCHITECTURES,
    CONTEXT_LENGTH,
    NATIVE_ARCHITECTURES,
    save_tiny,
)
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.millrace import MillraceEngine
from workers.inference.engine.model import load_model
from workers.inference.engine.protocol import EngineRequest, SamplingParams

NUM_TOKENS = 64
_RANDOM = random.Random(7)
PROMPT = [_RANDOM.randrange(1, 300) for _ in range(70)]
OTHERS = [[_RANDOM.randrange(1, 300) for _ in range(_RANDOM.randint(1, 90))] for _ in range(31)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny(name, root / name) for name in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@cache
def generated(folder: Path) -> list[int]:
    """What transformers makes of PROMPT; computed once per model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found: list[int] = tokens[0, len(PROMPT) :].tolist()
    return found


@contextmanager
def engine(folder: Path, **config: Any) -> Iterator[tuple[MillraceEngine, Collector]]:
    spec = ModelSpec(name="m", path=str(folder), dtype="fp32")
    started, sink = MillraceEngine(EngineConfig(models=(spec,), **config)), Collector()
    try:
        started.start(sink)
        yield started, sink
    finally:
        started.shutdown()


def request(
    request_id: str, prompt: Sequence[int], *, past: Sequence[int] = (), salt: str = ""
) -> EngineRequest:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    return EngineRequest(
        request_id=request_id,
        model="m",
        prompt_token_ids=prompt,
        sampling=sampling,
        generated_token_ids=(past,) if past else (),
        cache_salt=salt,
    )


def test_alone(folder: Path) -> None:
    with engine(folder) as (under_test, sink):
        under_test.submit(request("one", PROMPT))
        sink.wait_finished("one")
        assert sink.tokens("one") == generated(folder)


@pytest.mark.parametrize("architecture", NATIVE_ARCHITECTURES)
def test_without_the_compiled_step(architecture: str, folders: dict[str, Path]) -> None:
    with engine(folders[architecture], use_native_step=False) as (under_test, sink):
        under_test.submit(request("one", PROMPT))
        sink.wait_finished("one")
        assert sink.tokens("one") == generated(folders[architecture])


def test_batched_with_31_others(folder: Path) -> None:
    with engine(folder, max_num_seqs=32) as (under_test, sink):
        for i, prompt in enumerate(OTHERS):
            under_test.submit(request(f"other{i}", prompt))
        under_test.submit(request("one", PROMPT))
        sink.wait_finished("one", *(f"other{i}" for i in range(len(OTHERS))))
        assert sink.tokens("one") == generated(folder)


def test_through_chunked_prefill_beside_decodes(folder: Path) -> None:
    with engine(folder, max_num_seqs=4, max_num_batched_tokens=11) as (under_test, sink):
        for i, prompt in enumerate(OTHERS[:3]):
            under_test.submit(request(f"other{i}", prompt))
        under_test.submit(request("one", PROMPT))
        sink.wait_finished("one")
        assert sink.tokens("one") == generated(folder)


def test_through_a_prefix_hit(folder: Path) -> None:
    with engine(folder) as (under_test, sink):
        for request_id in ("cold", "warm"):
            under_test.submit(request(request_id, PROMPT))
            sink.wait_finished(request_id)
        assert sink.tokens("warm") == generated(folder)
        assert sink.terminals("cold")[0].cached_tokens == 0
        assert sink.terminals("warm")[0].cached_tokens == 64  # four full pages


def test_through_preemption(folder: Path) -> None:
    shape = load_model(
        ModelSpec(name="m", path=str(folder), dtype="fp32"),
        torch.device("cpu"),
        is_hub_allowed=False,
    ).kv_shape
    num_bytes = shape.bytes_per_token * CONTEXT_LENGTH  # one full context for eight requests
    with engine(folder, max_num_seqs=8, kv_cache_bytes=num_bytes) as (under_test, sink):
        for i, prompt in enumerate(OTHERS[:7]):
            under_test.submit(request(f"other{i}", prompt))
        under_test.submit(request("one", PROMPT))
        sink.wait_finished("one", *(f"other{i}" for i in range(7)))
        assert sink.tokens("one") == generated(folder)
        assert under_test.stats().num_preemptions > 0


def test_continued_after_a_cut_at_every_position(folder: Path) -> None:
    expected = generated(folder)
    with engine(folder) as (under_test, sink):
        for cut in range(NUM_TOKENS + 1):
            under_test.submit(request(f"cut{cut}", PROMPT, past=expected[:cut], salt=str(cut)))
        sink.wait_finished(*(f"cut{cut}" for cut in range(NUM_TOKENS + 1)))
        for cut in range(NUM_TOKENS + 1):
            assert expected[:cut] + sink.tokens(f"cut{cut}") == expected
