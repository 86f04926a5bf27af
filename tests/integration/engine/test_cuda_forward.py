"""The path of CUDA devices over whole models; where there is none, on interpreted kernels.

A recording is then a call of the same computation: what a CUDA graph adds is tested in tests/gpu.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM

from tests.integration.engine.collector import Collector
from tests.integration.engine.test_equality import OTHERS, PROMPT, generated, request
from tests.integration.engine.test_forward import TOKENS, Tokens, chunk, own_logits
from tests.integration.engine.test_scoring import check as check_scores
from tests.integration.engine.test_scoring import scores, submit
from tests.support.tiny_models import (
    ARCHITECTURES,
    CONTEXT_LENGTH,
    byte_level_tokenizer,
    save_tiny,
)
from tests.support.triton_interpreter import multiply_bf16
from tests.support.triton_kernels import kernel_device
from workers.inference.engine.attention import ATTENTION_NAME
from workers.inference.engine.config import Dtype, EngineConfig, ModelSpec
from workers.inference.engine.cuda import check, launch
from workers.inference.engine.cuda.check import CheckError, check_kernels
from workers.inference.engine.cuda.forward import CudaForward
from workers.inference.engine.cuda.graphs import Compute, Recorder
from workers.inference.engine.cuda.load import choose_forward
from workers.inference.engine.forward import Forward
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.millrace import MillraceEngine, ProvenModel
from workers.inference.engine.model import LoadedModel, load_model
from workers.inference.engine.proof import Proof
from workers.inference.engine.protocol import SamplingParams
from workers.inference.engine.scheduler import Batch
from workers.inference.engine.torch_forward import TorchForward

DEVICE = kernel_device()


def again(compute: Compute) -> Compute:
    """A recorder whose replays compute."""
    return compute


def load(folder: Path, dtype: Dtype = "fp32") -> LoadedModel:
    spec = ModelSpec(name="tiny", path=str(folder), dtype=dtype)
    return load_model(spec, DEVICE, is_hub_allowed=False)


def choose(loaded: LoadedModel, recorder: Recorder | None = again) -> Forward:
    cache = KVCache(loaded.kv_shape, num_pages=33, device=DEVICE)
    return choose_forward(
        loaded,
        cache,
        proof=Proof(loaded),
        recorder=recorder,
        max_num_seqs=3,
        on_recorded=lambda: None,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("recorder", [again, None], ids=["recorded", "computed"])
def test_logits_are_the_models_own_through_chunks_and_decodes_on_scattered_pages(
    architecture: str, recorder: Recorder | None, tmp_path: Path
) -> None:
    folder = save_tiny(architecture, tmp_path)
    expected = own_logits(folder, TOKENS)
    under_test = choose(load(folder), recorder)
    assert isinstance(under_test, CudaForward)
    assert bool(under_test.recorded_sizes) == (recorder is not None)
    one = Tokens(TOKENS[:40], [7, 3, 9, 1, 20])
    other = Tokens([*TOKENS[5:30], TOKENS[0]], [2, 4])
    under_test.run(Batch((chunk(one, 0, 13), chunk(other, 0, 25))))
    under_test.run(Batch((chunk(other, 25, 1), chunk(one, 13, 27)), num_decodes=1))
    for position in range(40, 47):
        one.token_ids.append(TOKENS[position])
        batch = Batch((chunk(one, position, 1), chunk(other, 25, 1)), num_decodes=2)
        found = under_test.run(batch)
        torch.testing.assert_close(found[0].cpu(), expected[position], rtol=1e-4, atol=1e-3)


def test_bf16_logits_stay_near_those_of_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_bf16(monkeypatch)
    folder = save_tiny("qwen3", tmp_path)
    under_test = choose(load(folder, "bf16"))
    assert isinstance(under_test, CudaForward)

    found = under_test.run(Batch((chunk(Tokens(TOKENS, [4, 0, 9, 2, 7]), 0, 70),)))[0].cpu()

    expected = own_logits(folder, TOKENS)[-1]
    assert (found - expected).norm() / expected.norm() < 0.05


def test_capped_scores_are_the_models_own(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    config = Gemma2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        sliding_window=20,
        attn_logit_softcapping=2.0,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    under_test = choose(load(tmp_path))

    assert isinstance(under_test, CudaForward)
    found = under_test.run(Batch((chunk(Tokens(TOKENS, [4, 0, 9, 2, 7]), 0, 70),)))[0].cpu()
    expected = own_logits(tmp_path, TOKENS)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no PTX today")


def zeros(query: torch.Tensor, *args: Any) -> torch.Tensor:
    return query.new_zeros(query.shape[1], query.shape[0], query.shape[2])


@pytest.mark.parametrize(
    ("broken", "name", "reason"),
    [
        (fail, "workers.inference.engine.cuda.trial.attend", "RuntimeError: no PTX today"),
        (zeros, "workers.inference.engine.cuda.trial.attend", "the kernels differs"),
        (zeros, "workers.inference.engine.cuda.attention.attend", "its logits differ"),
    ],
)
def test_kernels_that_fail_or_compute_something_else_are_not_used(
    broken: Callable[..., Any],
    name: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_tiny("llama", tmp_path)
    loaded = load(folder)
    monkeypatch.setattr(name, broken)

    with structlog.testing.capture_logs() as logs:
        under_test = choose(loaded)

    assert isinstance(under_test, TorchForward)
    assert loaded.model.config._attn_implementation == ATTENTION_NAME
    (told,) = [entry for entry in logs if entry["event"] == "cuda_kernels_unavailable"]
    assert reason in told["reason"]
    found = under_test.run(Batch((chunk(Tokens(TOKENS, [4, 0, 9, 2, 7]), 0, 70),)))[0].cpu()
    torch.testing.assert_close(found, own_logits(folder, TOKENS)[-1], rtol=1e-4, atol=1e-3)


def test_without_triton_the_step_goes_through_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(save_tiny("llama", tmp_path))
    for module in ("check", "forward", "launch", "kernels", "trial", "attention"):
        monkeypatch.delitem(sys.modules, f"workers.inference.engine.cuda.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)

    with structlog.testing.capture_logs() as logs:
        under_test = choose(loaded)

    assert isinstance(under_test, TorchForward)
    assert "triton" in logs[0]["reason"]


@pytest.mark.parametrize("when", ["recording", "replaying"])
def test_recordings_that_fail_or_repeat_something_else_are_forgotten(
    when: str, tmp_path: Path
) -> None:
    def record(compute: Compute) -> Compute:
        if when == "recording":
            raise RuntimeError("operation not permitted when stream is capturing")
        first = compute()
        return lambda: first

    folder = save_tiny("llama", tmp_path)

    with structlog.testing.capture_logs() as logs:
        under_test = choose(load(folder), record)

    assert isinstance(under_test, CudaForward)
    assert under_test.recorded_sizes == []
    assert logs[0]["event"] == "cuda_graphs_unavailable"
    one = Tokens(TOKENS, [4, 0, 9, 2, 7])
    under_test.run(Batch((chunk(one, 0, 69),)))
    found = under_test.run(Batch((chunk(one, 69, 1),), num_decodes=1))[0].cpu()
    torch.testing.assert_close(found, own_logits(folder, TOKENS)[-1], rtol=1e-4, atol=1e-3)


class _NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what makes the host wait for the device, or copies to it: no graph can hold that."""

    _FORBIDDEN = frozenset({"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "lift_fresh"})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self._FORBIDDEN, f"{name} in a decode step"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_in_a_decode_step_waits_for_the_device(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(compute: Compute) -> Compute:
        no_waiting = _NoWaiting()  # type: ignore[no-untyped-call]
        with monkeypatch.context() as patch, no_waiting:
            # The interpreter of kernels does what it likes.
            patch.setattr("workers.inference.engine.cuda.attention.write_pages", lambda *_: None)
            patch.setattr("workers.inference.engine.cuda.attention.attend", zeros)
            compute()
        return compute

    under_test = choose(load(save_tiny(architecture, tmp_path)), record)

    assert isinstance(under_test, CudaForward)
    assert under_test.recorded_sizes == [1, 2, 3]


def test_heads_that_are_too_large_are_refused(tmp_path: Path) -> None:
    loaded = load(save_tiny("llama", tmp_path))
    shape = loaded.kv_shape
    wide = type(shape)(1, shape.num_kv_heads, launch.MAX_HEAD_DIM + 1, shape.dtype)

    with pytest.raises(CheckError, match="no kernels"):
        check_kernels(loaded.model, wide)


def test_window_and_cap_of_a_config_are_checked(tmp_path: Path) -> None:
    loaded = load(save_tiny("gemma3", tmp_path))

    windows = {formula.window for formula in check.formulas_of(loaded.model, 32)}

    assert windows == {0, 20}


class KernelEngine(MillraceEngine):
    """The engine as it is on a CUDA device, on whatever device the kernels run."""

    forward: Forward

    def _forward(self, model: ProvenModel, num_pages: int) -> Forward:
        loaded = model.loaded
        cache = KVCache(loaded.kv_shape, num_pages=num_pages + 1, device=DEVICE)
        self.forward = choose_forward(
            loaded,
            cache,
            proof=model.proof,
            recorder=again,
            max_num_seqs=4,
            on_recorded=lambda: self._report("recording", 1.0),
        )
        assert self.forward.num_pages == num_pages
        return self.forward


def test_greedy_tokens_are_those_of_generate_beside_others(tmp_path: Path) -> None:
    folder = save_tiny("mistral", tmp_path)
    config = EngineConfig(
        device=str(DEVICE),
        models=(ModelSpec(name="m", path=str(folder), dtype="fp32"),),
        max_num_seqs=4,
        max_num_batched_tokens=40,
        use_native_step=False,
        kv_cache_bytes=2**22,
    )
    few = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    engine, sink = KernelEngine(config), Collector()
    try:
        engine.start(sink)
        assert isinstance(engine.forward, CudaForward)
        for name, prompt in (("other", OTHERS[0]), ("one", PROMPT)):
            engine.submit(replace(request(name, prompt), sampling=few))
        sink.wait_finished("one")
    finally:
        engine.shutdown()

    assert sink.tokens("one") == generated(folder)[:24]


def test_prompts_are_scored_by_the_kernels_as_by_transformers(tmp_path: Path) -> None:
    folder = save_tiny("mistral", tmp_path)
    config = EngineConfig(
        device=str(DEVICE),
        models=(ModelSpec(name="m", path=str(folder), dtype="fp32"),),
        max_num_seqs=4,
        max_num_batched_tokens=33,
        use_native_step=False,
        kv_cache_bytes=2**22,
    )
    engine, sink = KernelEngine(config), Collector()
    try:
        engine.start(sink)
        assert isinstance(engine.forward, CudaForward)
        submit(engine, "other", OTHERS[0], prompt_logprobs=None, max_tokens=20)
        submit(engine, "one", PROMPT)
        sink.wait_finished("one", "other")
    finally:
        engine.shutdown()

    check_scores(scores(sink, "one"), folder, PROMPT)
