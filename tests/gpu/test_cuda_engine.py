"""The engine on a CUDA device: compiled kernels, real recordings, and what they cost the host.

tests/unit/engine/cuda and tests/integration/engine/test_cuda_forward.py run on the device, too,
where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.engine.collector import Collector
from tests.integration.engine.test_equality import NUM_TOKENS, OTHERS, PROMPT, request
from tests.integration.engine.test_forward import TOKENS, own_logits
from tests.support.tiny_models import ARCHITECTURES, save_tiny
from workers.inference.engine.config import Dtype, EngineConfig, ModelSpec
from workers.inference.engine.cuda.graphs import CudaRecorder
from workers.inference.engine.cuda.load import choose_forward
from workers.inference.engine.forward import Forward
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.millrace import MillraceEngine
from workers.inference.engine.model import load_model
from workers.inference.engine.proof import PagedTokens, Proof
from workers.inference.engine.scheduler import Batch

pytestmark = pytest.mark.gpu

MAX_NUM_SEQS = 33
# In float16 and bfloat16 a forward pass of random weights rounds differently on every device.
TOLERANCES: dict[Dtype, float] = {"fp32": 1e-3, "fp16": 0.03, "bf16": 0.1}


def generated(folder: Path, prompt: Sequence[int]) -> list[int]:
    """What transformers' generate makes of a prompt on the device."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").cuda()
    tokens = model.generate(
        torch.tensor([prompt], device="cuda"),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device="cuda"),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found: list[int] = tokens[0, len(prompt) :].tolist()
    return found


@contextmanager
def engine(folder: Path, **config: Any) -> Iterator[tuple[MillraceEngine, Collector]]:
    spec = ModelSpec(name="m", path=str(folder), dtype="fp32")
    settings: dict[str, Any] = {
        "device": "cuda:0",
        "max_num_seqs": MAX_NUM_SEQS,
        "kv_cache_bytes": 2**26,
    } | config
    started, sink = MillraceEngine(EngineConfig(models=(spec,), **settings)), Collector()
    try:
        started.start(sink)
        yield started, sink
    finally:
        started.shutdown()


def forward_of(folder: Path, dtype: Dtype) -> Forward:
    device = torch.device("cuda:0")
    spec = ModelSpec(name="m", path=str(folder), dtype=dtype)
    loaded = load_model(spec, device, is_hub_allowed=False)
    return choose_forward(
        loaded,
        KVCache(loaded.kv_shape, num_pages=65, device=device),
        proof=Proof(loaded),
        recorder=CudaRecorder(device),
        max_num_seqs=4,
        on_recorded=lambda: None,
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_and_recordings_prove_themselves(
    architecture: str, dtype: Dtype, tmp_path: Path
) -> None:
    from workers.inference.engine.cuda.forward import CudaForward  # noqa: PLC0415 (needs Triton)

    folder = save_tiny(architecture, tmp_path)
    under_test = forward_of(folder, dtype)
    assert isinstance(under_test, CudaForward)
    assert under_test.recorded_sizes == [1, 2, 4]
    probe = PagedTokens(TOKENS, [9, 3, 7, 1, 20])
    expected = own_logits(folder, TOKENS)

    under_test.run(Batch((probe.chunk(0, 69),)))
    found = under_test.run(Batch((probe.chunk(69, 1),), num_decodes=1))[0].cpu()

    assert (found - expected[69]).norm() / expected[69].norm() < TOLERANCES[dtype]


@pytest.mark.parametrize("use_cuda_graphs", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_tokens_are_those_of_generate_beside_others(
    architecture: str, use_cuda_graphs: bool, tmp_path: Path
) -> None:
    folder = save_tiny(architecture, tmp_path)
    with engine(folder, use_cuda_graphs=use_cuda_graphs) as (under_test, sink):
        for i, prompt in enumerate(OTHERS):
            under_test.submit(request(f"other{i}", prompt))
        under_test.submit(request("one", PROMPT))
        sink.wait_finished("one", *(f"other{i}" for i in range(len(OTHERS))))

    assert sink.tokens("one") == generated(folder, PROMPT)
    assert sink.tokens("other0") == generated(folder, OTHERS[0])


def test_without_kernels_tokens_are_the_same(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    with engine(folder, use_cuda_kernels=False) as (under_test, sink):
        under_test.submit(request("one", PROMPT))
        sink.wait_finished("one")

    assert sink.tokens("one") == generated(folder, PROMPT)


def test_a_recorded_step_waits_for_the_device_only_when_tokens_are_read(tmp_path: Path) -> None:
    under_test = forward_of(save_tiny("llama", tmp_path), "fp32")
    probe = PagedTokens(TOKENS, [9, 3, 7, 1, 20])
    under_test.run(Batch((probe.chunk(0, 69),)))
    decode = Batch((probe.chunk(69, 1),), num_decodes=1)
    under_test.run(decode)

    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = under_test.run(decode)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert torch.isfinite(logits).all()
