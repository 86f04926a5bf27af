"""The real engine against transformers' own generate, and what it survives."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.engine.collector import Collector
from tests.support.tiny_models import EOS_TOKEN_ID, save_tiny_llama
from workers.inference.engine.checkpoint import check_config
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.detokenizer import TokenizerDecoder
from workers.inference.engine.errors import EngineError
from workers.inference.engine.millrace import MillraceEngine
from workers.inference.engine.model_runner import ModelRunner
from workers.inference.engine.native.forward import NativeForward
from workers.inference.engine.protocol import (
    Engine,
    EngineRequest,
    FinishReason,
    SamplingParams,
)
from workers.inference.engine.torch_forward import TorchForward

Start = Callable[..., tuple[Engine, Collector]]

RANDOM = random.Random(3)
PROMPTS = [
    [RANDOM.randrange(1, 300) for _ in range(RANDOM.choice([1, 2, 9, 70]))] for _ in range(12)
]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def start(model_path: Path) -> Iterator[Start]:
    engines: list[Engine] = []

    def start_engine(*, dtype: str = "fp32", **config: Any) -> tuple[Engine, Collector]:
        spec = ModelSpec(name="m", path=str(model_path), dtype=dtype)  # type: ignore[arg-type]
        settings: dict[str, Any] = {"models": (spec,), "max_num_seqs": 4, "num_threads": 1} | config
        engine, sink = MillraceEngine(EngineConfig(**settings)), Collector()
        engines.append(engine)
        engine.start(sink)
        return engine, sink

    yield start_engine
    for engine in engines:
        engine.shutdown()


def request(request_id: str, prompt: list[int], **sampling: Any) -> EngineRequest:
    settings = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True} | sampling
    return EngineRequest(
        request_id=request_id,
        model=settings.pop("model", "m"),
        prompt_token_ids=prompt,
        sampling=SamplingParams(**settings),
    )


def run_together(engine: Engine, sink: Collector, **sampling: Any) -> list[list[int]]:
    """Tokens of all PROMPTS, submitted at once."""
    ids = [f"together{i}" for i in range(len(PROMPTS))]
    for i, (request_id, prompt) in enumerate(zip(ids, PROMPTS, strict=True)):
        engine.submit(request(request_id, prompt, **{"seed": i} | sampling))
    sink.wait_finished(*ids)
    return [sink.tokens(request_id) for request_id in ids]


def run_alone(engine: Engine, sink: Collector, **sampling: Any) -> list[list[int]]:
    """Tokens of all PROMPTS, one after the other."""
    for i, prompt in enumerate(PROMPTS):
        engine.submit(request(f"alone{i}", prompt, **{"seed": i} | sampling))
        sink.wait_finished(f"alone{i}")
    return [sink.tokens(f"alone{i}") for i in range(len(PROMPTS))]


def test_greedy_batch_equals_transformers_generate(start: Start, model_path: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_path)

    tokens = run_together(*start())

    for prompt, produced in zip(PROMPTS, tokens, strict=True):
        expected = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=30,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert produced == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.9, "top_k": 50}])
def test_tokens_do_not_depend_on_what_shares_the_batch(
    start: Start, sampling: dict[str, Any]
) -> None:
    engine, sink = start()

    assert run_together(engine, sink, **sampling) == run_alone(engine, sink, **sampling)


def test_chunked_prefill_gives_the_same_tokens(start: Start) -> None:
    whole = run_together(*start())

    assert run_together(*start(max_num_batched_tokens=7)) == whole


def test_without_prefix_cache_nothing_is_found_and_the_tokens_are_the_same(start: Start) -> None:
    engine, sink = start(enable_prefix_cache=False)
    cached_engine, cached_sink = start()

    tokens = [run_alone(engine, sink), run_together(engine, sink)]
    cached = [run_alone(cached_engine, cached_sink), run_together(cached_engine, cached_sink)]

    assert tokens == cached
    assert engine.stats().prefix_hits == 0
    assert cached_engine.stats().prefix_hits > 0


def test_pages_are_reused_cleanly(start: Start) -> None:
    engine, sink = start(max_num_seqs=1)
    fresh = run_alone(*start(max_num_seqs=1))

    engine.submit(request("long", [9] * 100, max_tokens=120))
    sink.wait_finished("long")

    assert run_alone(engine, sink) == fresh


def test_unseeded_requests_differ(start: Start) -> None:
    engine, sink = start()

    for request_id in ("a", "b"):
        engine.submit(request(request_id, [5, 6, 7], temperature=1.0))
    sink.wait_finished("a", "b")

    assert sink.tokens("a") != sink.tokens("b")


def test_eos_is_suppressed_until_min_tokens(start: Start) -> None:
    engine, sink = start()
    towards_eos = {"logit_bias": {0: 100.0}, "ignore_eos": False}

    engine.submit(request("at once", [5], **towards_eos))
    engine.submit(request("later", [5], min_tokens=6, **towards_eos))
    sink.wait_finished("at once", "later")

    assert sink.tokens("at once") == [0]
    assert len(sink.tokens("later")) == 7
    assert sink.reason("later") is FinishReason.STOP


def test_two_models_are_served_side_by_side(start: Start, model_path: Path, tmp_path: Path) -> None:
    other_path = save_tiny_llama(tmp_path, seed=1, num_layers=1)
    specs = [
        ModelSpec(name=name, path=str(path), dtype="fp32")
        for name, path in (("m", model_path), ("other", other_path))
    ]
    engine, sink = start(models=tuple(specs))

    engine.submit(request("a", [5, 6, 7]))
    engine.submit(request("b", [5, 6, 7], model="other"))
    sink.wait_finished("a", "b")

    assert sorted(engine.models) == ["m", "other"]
    assert len(sink.tokens("a")) == len(sink.tokens("b")) == 30
    assert sink.tokens("a") != sink.tokens("b")


@pytest.mark.parametrize(
    ("raised", "code"),
    [(RuntimeError("boom"), "engine_error"), (torch.OutOfMemoryError("full"), "out_of_memory")],
)
def test_failed_forward_fails_its_requests_and_the_engine_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch, raised: Exception, code: str
) -> None:
    engine, sink = start()

    def fail(*_args: object) -> None:
        raise raised

    with monkeypatch.context() as broken:
        broken.setattr(NativeForward, "run", fail)
        broken.setattr(TorchForward, "run", fail)
        engine.submit(request("a", [5]))
        sink.wait_finished("a")
    engine.submit(request("b", [5]))
    sink.wait_finished("b")

    (failed,) = sink.outputs("a")
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == (code, True)
    assert sink.reason("b") is FinishReason.LENGTH


def test_request_whose_text_fails_falls_alone(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BrokenDecoder(TokenizerDecoder):
        def push(self, token_id: int) -> str:
            raise RuntimeError("boom")

    engine, sink = start()
    make_decoder = ModelRunner.decoder
    monkeypatch.setattr(ModelRunner, "decoder", lambda self, _: BrokenDecoder(self._tokenizer))

    engine.submit(request("a", [5]))
    monkeypatch.setattr(ModelRunner, "decoder", make_decoder)
    engine.submit(request("b", [5]))
    sink.wait_finished("a", "b")

    assert sink.reason("a") is FinishReason.ERROR
    assert sink.reason("b") is FinishReason.LENGTH


@pytest.mark.parametrize(("is_skipped", "said"), [(True, ""), (False, "<|end|>" * 3)])
def test_special_tokens_are_said_where_they_are_not_skipped(
    start: Start, is_skipped: bool, said: str
) -> None:
    engine, sink = start()
    forced = {"logit_bias": {EOS_TOKEN_ID: 100.0}, "skip_special_tokens": is_skipped}

    engine.submit(request("a", [5], max_tokens=3, **forced))
    again = replace(request("b", [5], max_tokens=3, **forced), generated_token_ids=([0],))
    engine.submit(again)
    engine.submit(request("ended", [5], ignore_eos=False, **forced))
    sink.wait_finished("a", "b", "ended")

    assert sink.tokens("a") == [EOS_TOKEN_ID] * 3
    assert (sink.text("a"), sink.text("b")) == (said, said[: len(said) // 3 * 2])
    assert (sink.tokens("ended"), sink.text("ended")) == ([EOS_TOKEN_ID], "")


@pytest.mark.parametrize("dtype", ["bf16", "int8", "nf4"])
def test_other_dtypes_generate(start: Start, dtype: str) -> None:
    if dtype in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
    engine, sink = start(dtype=dtype)

    engine.submit(request("a", [5, 6, 7], max_tokens=5))
    sink.wait_finished("a")

    assert engine.models["m"].dtype == dtype
    assert len(sink.tokens("a")) == 5


def test_model_whose_kv_cache_does_not_fit_is_refused(start: Start) -> None:
    engine, _ = start(kv_memory_share=1e-9)

    assert "MiB of KV cache" in engine.refused["m"]
    with pytest.raises(EngineError) as refusal:
        engine.submit(request("a", [5]))
    assert refusal.value.code == "model_not_found"


def test_engine_without_a_model_that_loads_is_idle_and_says_why(tmp_path: Path) -> None:
    spec = ModelSpec(name="m", path=str(tmp_path / "nothing"))
    reports: list[str] = []
    engine = MillraceEngine(
        EngineConfig(models=(spec,)), on_progress=lambda what, _done: reports.append(what)
    )

    engine.start(Collector())

    assert engine.refused == {"m": "there is no folder nothing"}
    assert (dict(engine.models), reports) == ({}, ["m", "ready"])
    assert engine.progress().is_idle
    engine.shutdown()


def test_weights_in_pickle_format_are_refused(start: Start, tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")

    engine, _ = start(models=(ModelSpec(name="m", path=str(tmp_path)),))

    assert "pytorch_model.bin: only safetensors are read" in engine.refused["m"]


@pytest.mark.parametrize("extra", [{"auto_map": {}}, {"text_config": {"_attn_implementation": 1}}])
def test_config_that_could_name_code_is_refused(model_path: Path, extra: dict[str, object]) -> None:
    config = json.loads((model_path / "config.json").read_text())
    check_config(config)

    with pytest.raises(EngineError) as refused:
        check_config(config | extra)

    assert refused.value.code == "model_unsupported"
