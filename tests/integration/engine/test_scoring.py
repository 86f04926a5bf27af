"""Log-probabilities of prompts are those of transformers' own logits, whatever happens."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.engine.collector import Collector
from tests.support.tiny_models import save_tiny
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.millrace import MillraceEngine
from workers.inference.engine.protocol import (
    EngineRequest,
    FinishReason,
    SamplingParams,
    TokenLogprobs,
)

NUM_TOP = 3
_RANDOM = random.Random(3)
PROMPT = [_RANDOM.randrange(1, 300) for _ in range(70)]
Started = tuple[MillraceEngine, Collector, Path]


@cache
def expected(folder: Path, prompt: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] behind each token of a prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([prompt])).logits[0]
    return logits.float().log_softmax(-1)


@pytest.fixture(
    scope="module", params=[("llama", True), ("llama", False), ("gpt2", False)], ids=str
)
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """Prompts take some steps."""
    architecture, use_native_step = request.param
    folder = save_tiny(architecture, tmp_path_factory.mktemp("models") / architecture)
    spec = ModelSpec(name="m", path=str(folder), dtype="fp32")
    engine = MillraceEngine(
        EngineConfig(
            models=(spec,),
            max_num_seqs=4,
            max_num_batched_tokens=24,
            num_threads=1,
            use_native_step=use_native_step,
        )
    )
    sink = Collector()
    try:
        engine.start(sink)
        yield engine, sink, folder
    finally:
        engine.shutdown()


def submit(engine: MillraceEngine, name: str, prompt: Sequence[int] = PROMPT, **fields: Any) -> str:
    """A request whose prompt is scored; fields of EngineRequest and SamplingParams."""
    own = {key: fields.pop(key) for key in ("num_scored", "generated_token_ids") if key in fields}
    defaults = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": NUM_TOP, "ignore_eos": True}
    sampling = SamplingParams(**defaults | fields)
    engine.submit(
        EngineRequest(request_id=name, model="m", prompt_token_ids=prompt, sampling=sampling, **own)
    )
    return name


def scores(sink: Collector, name: str) -> list[TokenLogprobs]:
    return [score for output in sink.outputs(name) for score in output.prompt_logprobs]


def check(found: Sequence[TokenLogprobs], folder: Path, prompt: Sequence[int] = PROMPT) -> None:
    rows = expected(folder, tuple(prompt))
    first, *others = found
    assert first == TokenLogprobs(prompt[0], None)
    assert [score.token_id for score in found] == list(prompt)
    for row, score in zip(rows, others, strict=False):
        assert score.logprob == pytest.approx(float(row[score.token_id]), abs=2e-4)
        best = row.topk(NUM_TOP)
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=2e-4)


def test_a_prompt_is_scored_in_chunks_and_goes_on(started: Started) -> None:
    engine, sink, folder = started
    sink.wait_finished(submit(engine, "one", max_tokens=3))

    check(scores(sink, "one"), folder)
    best = int(expected(folder, tuple(PROMPT))[-1].argmax())
    assert sink.tokens("one")[0] == best
    assert len(sink.tokens("one")) == 3


def test_what_a_cache_holds_is_scored_all_the_same(started: Started) -> None:
    engine, sink, folder = started
    sink.wait_finished(submit(engine, "cold", prompt_logprobs=None))
    sink.wait_finished(submit(engine, "plain", prompt_logprobs=None))
    sink.wait_finished(submit(engine, "scored"))

    assert sink.terminals("plain")[0].cached_tokens > 0
    assert sink.terminals("scored")[0].cached_tokens == 0
    check(scores(sink, "scored"), folder)


def test_nothing_is_drawn_where_no_token_is_asked_for(started: Started) -> None:
    engine, sink, folder = started
    sink.wait_finished(submit(engine, "none", max_tokens=0))
    sink.wait_finished(submit(engine, "unscored", max_tokens=0, prompt_logprobs=None))

    check(scores(sink, "none"), folder)
    assert (sink.tokens("none"), sink.reason("none")) == ([], FinishReason.LENGTH)
    assert (sink.tokens("unscored"), sink.reason("unscored")) == ([], FinishReason.LENGTH)


@pytest.mark.parametrize("length", [1, 2, 16, 17])
def test_short_prompts(started: Started, length: int) -> None:
    engine, sink, folder = started
    name = submit(engine, f"short{length}", PROMPT[:length])
    sink.wait_finished(name)

    check(scores(sink, name), folder, PROMPT[:length])
    assert len(sink.tokens(name)) == 1


@pytest.mark.parametrize("num_scored", [1, 2, 33, 69, 70])
def test_an_attempt_tells_what_the_one_before_did_not(started: Started, num_scored: int) -> None:
    engine, sink, folder = started
    name = submit(engine, f"resumed{num_scored}", num_scored=num_scored, max_tokens=2)
    sink.wait_finished(name)

    told = scores(sink, name)
    before = [TokenLogprobs(PROMPT[0], None), *scores(sink, "one")[1:num_scored]]
    assert len(told) == len(PROMPT) - num_scored
    check([*before, *told], folder)


def test_an_attempt_whose_tokens_are_over_scores_the_prompt_again(started: Started) -> None:
    engine, sink, folder = started
    name = submit(engine, "over", generated_token_ids=[[7]])
    sink.wait_finished(name)

    check(scores(sink, name), folder)
    assert (sink.tokens(name), sink.text(name)) == ([], "")
    assert sink.reason(name) is FinishReason.LENGTH


def test_choices_wait_until_their_prompt_is_told(started: Started) -> None:
    engine, sink, folder = started
    sink.wait_finished(submit(engine, "warm", prompt_logprobs=None))
    sink.wait_finished(submit(engine, "many", n=3, max_tokens=2), n=3)

    check(scores(sink, "many"), folder)
    outputs = sink.outputs("many")
    last = max(at for at, output in enumerate(outputs) if output.prompt_logprobs)
    assert not any(output.token_ids for output in outputs[:last])
    assert {output.index for output in outputs[: last + 1]} == {0}


def test_beside_others(started: Started) -> None:
    engine, sink, folder = started
    prompts = [PROMPT[at:] + PROMPT[:at] for at in range(6)]
    names = [
        submit(engine, f"beside{at}", prompt, max_tokens=20, prompt_logprobs=NUM_TOP)
        if at % 2
        else submit(engine, f"beside{at}", prompt, max_tokens=20, prompt_logprobs=None)
        for at, prompt in enumerate(prompts)
    ]
    sink.wait_finished(*names)

    for at in (1, 3, 5):
        check(scores(sink, names[at]), folder, prompts[at])
    assert not scores(sink, names[0])
