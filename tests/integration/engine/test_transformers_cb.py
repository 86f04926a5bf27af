"""transformers' continuous batching keeps the engine's promises, or refuses what it can't do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.architectures import save
from tests.integration.engine import test_engine_protocol as protocol
from tests.integration.engine.collector import Collector
from tests.support.tiny_models import CONTEXT_LENGTH, save_tiny_llama
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.errors import EngineError
from workers.inference.engine.factory import build_engine
from workers.inference.engine.protocol import Engine, EngineRequest, FinishReason, Phase
from workers.inference.engine.transformers_cb import TransformersEngine

Start = Callable[..., tuple[Engine, Collector]]


class SkippingEngine(TransformersEngine):
    """A test that asks for what this engine openly refuses has nothing to show here."""

    def submit(self, request: EngineRequest) -> None:
        try:
            super().submit(request)
        except EngineError as error:
            if error.code == "unsupported":
                pytest.skip(error.message)
            raise


def engine_config(model_path: Path, **fields: Any) -> EngineConfig:
    spec = ModelSpec(name="m", path=str(model_path), dtype="fp32")
    settings: dict[str, Any] = {
        "models": (spec,),
        "max_num_seqs": protocol.SLOTS,
        "num_threads": 1,
    } | fields
    return EngineConfig(kind="transformers-cb", **settings)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(model_path: Path) -> Iterator[Engine]:
    built = SkippingEngine(engine_config(model_path))
    yield built
    built.shutdown()


@pytest.fixture
def sink(engine: Engine) -> Collector:
    collector = Collector()
    engine.start(collector)
    return collector


class TestTransformersEngine(protocol.TestEngineProtocol):
    """All promises of an engine, asked of this one."""

    @pytest.mark.skip(reason="no prefix cache: the library's knows no salt")
    def test_cached_prefix_is_counted_and_changes_nothing(self) -> None: ...  # type: ignore[override]

    @pytest.mark.skip(reason="no prefix cache: the library's knows no salt")
    def test_requests_at_once_with_one_beginning_compute_it_once(self) -> None: ...  # type: ignore[override]


@pytest.fixture
def start(model_path: Path) -> Iterator[Start]:
    engines: list[Engine] = []

    def start_engine(**fields: Any) -> tuple[Engine, Collector]:
        built, collector = build_engine(engine_config(model_path, **fields)), Collector()
        engines.append(built)
        built.start(collector)
        return built, collector

    yield start_engine
    for built in engines:
        built.shutdown()


def own_tokens(model_path: Path, prompt: list[int]) -> list[int]:
    """24 greedy ones, by transformers without the engine."""
    generated = AutoModelForCausalLM.from_pretrained(model_path).generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens: list[int] = generated[0, len(prompt) :].tolist()
    return tokens


def test_greedy_batch_equals_transformers_generate(start: Start, model_path: Path) -> None:
    prompts = {f"r{length}": [5 + i for i in range(length)] for length in (1, 2, 9, 40, 70)}
    engine, sink = start(max_num_batched_tokens=32)

    for request_id, prompt in prompts.items():
        engine.submit(replace(protocol.generate(request_id), prompt_token_ids=prompt))
    sink.wait_finished(*prompts)

    for request_id, prompt in prompts.items():
        assert sink.tokens(request_id) == own_tokens(model_path, prompt)


def test_sampled_requests_share_a_batch_with_greedy_ones(start: Start) -> None:
    engine, sink = start()

    for request_id in ("greedy", "also greedy"):
        engine.submit(protocol.generate(request_id))
    for request_id in ("drawn", "also drawn"):
        engine.submit(
            protocol.generate(request_id, temperature=1.0, top_p=0.95, top_k=100, seed=None)
        )
    sink.wait_finished("greedy", "also greedy", "drawn", "also drawn")

    assert sink.tokens("greedy") == sink.tokens("also greedy")
    assert sink.tokens("drawn") != sink.tokens("also drawn")


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "seed": 3},
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.2},
        {"logit_bias": {5: 1.0}},
        {"min_p": 0.1},
        {"logprobs": 2},
        {"n": 2},
    ],
)
def test_what_the_library_cannot_do_is_refused(start: Start, sampling: dict[str, Any]) -> None:
    engine, _ = start()

    with pytest.raises(EngineError) as refused:
        engine.submit(protocol.generate("a", **sampling))

    assert (refused.value.code, refused.value.retryable) == ("unsupported", False)
    assert next(iter(sampling.keys() - {"temperature"})) in refused.value.message
    assert engine.progress().is_idle


def test_grammar_is_refused(start: Start) -> None:
    engine, _ = start()

    with pytest.raises(EngineError) as refused:
        engine.submit(replace(protocol.generate("a"), grammar="{}"))

    assert refused.value.code == "unsupported"


def test_eos_before_min_tokens_does_not_end_the_request(start: Start) -> None:
    engine, sink = start()
    engine.submit(protocol.generate("free"))
    sink.wait_finished("free")
    end = sink.tokens("free")[2]

    engine.submit(protocol.generate("a", stop_token_ids=(end,), min_tokens=8))
    sink.wait_finished("a")

    assert sink.tokens("a")[:8] == sink.tokens("free")[:8]


def test_fault_of_the_library_fails_its_requests_and_the_engine_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching.model_runner import ModelRunner  # noqa: PLC0415

    engine, sink = start()

    def fail(*_args: object) -> None:
        raise RuntimeError("boom")

    with monkeypatch.context() as broken:
        broken.setattr(ModelRunner, "compute_batch", fail)
        engine.submit(protocol.generate("a"))
        sink.wait_finished("a")
    steps_before = engine.stats().num_steps
    engine.submit(protocol.generate("b"))
    sink.wait_finished("b")

    (failed,) = sink.outputs("a")
    assert failed.finish_reason is FinishReason.ERROR
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("engine_error", True)
    assert sink.reason("b") is FinishReason.LENGTH
    assert engine.stats().num_restarts == 1
    assert engine.stats().num_steps == steps_before + 24


def test_prompt_in_chunks_and_a_full_cache_end_all_the_same(start: Start) -> None:
    engine, sink = start(max_num_seqs=2, max_num_batched_tokens=8)
    ids = [f"r{i}" for i in range(6)]

    for request_id in ids:
        engine.submit(
            replace(
                protocol.generate(request_id, max_tokens=protocol.ENDLESS),
                prompt_token_ids=[7] * 100,
            )
        )
    sink.wait_finished(*ids)

    assert {len(sink.tokens(request_id)) for request_id in ids} == {CONTEXT_LENGTH - 100}


@pytest.mark.parametrize("num_models", [0, 2])
def test_other_than_one_model_is_refused(model_path: Path, num_models: int) -> None:
    spec = ModelSpec(name="m", path=str(model_path))

    with pytest.raises(EngineError) as refused:
        build_engine(EngineConfig(kind="transformers-cb", models=(spec,) * num_models))

    assert refused.value.code == "model_load_failed"


def test_cache_that_does_not_fit_is_refused_at_start(start: Start) -> None:
    engine, _ = start(kv_memory_share=1e-9)

    assert "blocks of" in engine.refused["m"]


def test_engine_whose_model_does_not_load_is_idle_and_says_why(tmp_path: Path) -> None:
    engine = build_engine(engine_config(tmp_path / "nothing"))

    engine.start(Collector())

    assert engine.refused == {"m": "there is no folder nothing"}
    assert engine.progress().is_idle
    engine.shutdown()
    assert engine.progress().phase is Phase.STOPPED


def refusals(model_path: Path) -> dict[str, str]:
    engine = build_engine(engine_config(model_path))
    engine.start(Collector())
    engine.shutdown()
    return dict(engine.refused)


NOT_ITS_OWN = {"m": "what it says after a probe is not the model's own"}


# The library gives the first no positions.
@pytest.mark.parametrize(("kind", "refused"), [("bloom", NOT_ITS_OWN), ("phi", {})])
def test_model_that_the_library_computes_otherwise_is_refused(
    kind: str, refused: dict[str, str], tmp_path: Path
) -> None:
    save(kind, tmp_path)

    assert refusals(tmp_path) == refused


def test_window_longer_than_the_probe_is_proven_too(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching import input_outputs  # noqa: PLC0415

    save("mistral", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"sliding_window": 100}))
    prompt = list(range(20, 150))
    engine, sink = start(models=engine_config(tmp_path).models)
    engine.submit(replace(protocol.generate("a"), prompt_token_ids=prompt))
    sink.wait_finished("a")

    build_mask = input_outputs.build_attention_mask
    monkeypatch.setattr(
        input_outputs,
        "build_attention_mask",
        lambda **arguments: build_mask(**(arguments | {"sliding_window": 1})),  # none
    )

    assert sink.tokens("a") == own_tokens(tmp_path, prompt)
    assert refusals(tmp_path) == NOT_ITS_OWN
