"""Decoding on a GPU: random weights of a Llama-3.1-8B shape, built on the device, nothing on disk.

Our engine decodes a batch of 64; that is compared with what the memory allows (every weight and
every cached token read once a step, at the copy bandwidth measured in the same run), and the whole
of the workload with transformers' continuous batching, interleaved.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks import random_model
from benchmarks.engine_probes import Figures
from benchmarks.figures import machine, median_of, range_of
from benchmarks.own_engine import NAME, OwnEngine
from benchmarks.peers import continuous_batching
from benchmarks.workload import Job
from workers.inference.engine.attention import ATTENTION_NAME, paged_attention
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.forward import Forward
from workers.inference.engine.kv_cache import KVShape
from workers.inference.engine.load_progress import OnShare
from workers.inference.engine.millrace import MillraceEngine, ProvenModel
from workers.inference.engine.model import LoadedModel, ModelText
from workers.inference.engine.protocol import ModelInfo

_COPY_BYTES = 4 * 2**30
_CB_TOKENS_PER_STEP = 8_192
_KV_MEMORY_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Workload:
    """A model's shape, and the equal requests that are submitted at once."""

    config: LlamaConfig
    batch: int
    prompt_tokens: int
    output_tokens: int
    copy_bytes: int

    @property
    def kv_shape(self) -> KVShape:
        config = self.config
        return KVShape(
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            dtype=torch.bfloat16,
        )

    @property
    def cb_blocks(self) -> int:
        """Of transformers' cache: twice what the requests fill."""
        num_tokens = self.batch * (self.prompt_tokens + self.output_tokens)
        return max(16, 2 * num_tokens // continuous_batching.PAGE_SIZE)

    def jobs(self) -> list[Job]:
        source, size = random.Random(0), min(4_000, self.config.vocab_size - 1)
        return [
            Job(
                tuple(source.randint(3, size) for _ in range(self.prompt_tokens)),
                self.output_tokens,
            )
            for _ in range(self.batch)
        ]


LLAMA_8B = Workload(
    LlamaConfig(
        vocab_size=128_256,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2_048,
        rope_theta=500_000.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    ),
    batch=64,
    prompt_tokens=512,
    output_tokens=512,
    copy_bytes=_COPY_BYTES,
)
# Only shows that the benchmark runs: its figures say nothing about a GPU.
SMOKE = Workload(
    LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    ),
    batch=4,
    prompt_tokens=32,
    output_tokens=16,
    copy_bytes=2**20,
)


class RandomWeightsEngine(MillraceEngine):
    """Our engine, but its weights come from nowhere."""

    forward: Forward  # set at load

    def __init__(self, workload: Workload, device: str) -> None:
        self._workload = workload
        config = EngineConfig(
            device=device,
            models=(ModelSpec(name=NAME, path="", dtype="bf16"),),
            max_num_seqs=workload.batch,
            kv_memory_share=_KV_MEMORY_SHARE,
        )
        super().__init__(config)

    def describe(self) -> str:
        """What computes the steps, and for which numbers of decodes there is a recording."""
        sizes = getattr(self.forward, "recorded_sizes", [])
        return f"{type(self.forward).__name__}, recorded sizes {sizes}"

    def _load_weights(self, spec: ModelSpec, on_share: OnShare) -> LoadedModel:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
        config = self._workload.config
        model = random_llama(config, self._device, ATTENTION_NAME)
        info = ModelInfo(
            name=spec.name,
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            dtype="bf16",
            num_bytes=num_weight_bytes(model),
        )
        text = ModelText(random_model.word_tokenizer(config.vocab_size), frozenset())
        return LoadedModel(model, text, info, self._workload.kv_shape)

    def _forward(self, model: ProvenModel, num_pages: int) -> Forward:
        self.forward = super()._forward(model, num_pages)
        return self.forward


def run(device_name: str, rounds: int) -> Figures:
    """All figures. Needs about 70 GiB on a GPU; on a CPU it is a smoke test of a tiny shape."""
    device = torch.device(device_name)
    workload = LLAMA_8B if device.type == "cuda" else SMOKE
    bandwidth = copy_bandwidth(device, workload.copy_bytes)
    engine = RandomWeightsEngine(workload, device_name)
    ours = OwnEngine(engine)
    peer = random_llama(workload.config, device, "sdpa")
    num_bytes = num_weight_bytes(peer)
    manager = continuous_batching.start_manager(
        peer, num_blocks=workload.cb_blocks, max_batch_tokens=_CB_TOKENS_PER_STEP
    )
    try:
        decode_rates, ratios = _interleave(ours, manager, workload.jobs(), rounds)
    finally:
        attention = peer.config._attn_implementation
        manager.stop(block=True, timeout=30)
        ours.close()
    roofline = roofline_tok_s(workload, num_bytes, bandwidth)
    shares = [rate / roofline for rate in decode_rates]
    return {
        "decode_tok_s": median_of(decode_rates, 1),
        "decode_tok_s_range": range_of(decode_rates, 1),
        "decode_vs_roofline": median_of(shares),
        "decode_vs_roofline_range": range_of(shares),
        "roofline_tok_s": round(roofline, 1),
        "copy_tb_s": round(bandwidth / 1e12, 3),
        "vs_transformers_cb": median_of(ratios),
        "vs_transformers_cb_range": range_of(ratios),
        "ours_is": engine.describe(),
        "transformers_cb_attention": attention,
        "rounds": rounds,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else machine(),
        "is_smoke_test": workload is SMOKE,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def _interleave(
    ours: OwnEngine, manager: Any, jobs: Sequence[Job], rounds: int
) -> tuple[list[float], list[float]]:
    """Our tokens a second once all decode, and the peer's seconds over ours, round by round."""
    decode_rates, ratios = [], []
    for number in range(rounds + 1):  # the first warms both up
        rate, seconds = _decode(ours, jobs)
        started = time.perf_counter()
        continuous_batching.run(manager, jobs)
        if number:
            decode_rates.append(rate)
            ratios.append((time.perf_counter() - started) / seconds)
    return decode_rates, ratios


def random_llama(config: LlamaConfig, device: torch.device, attention: str) -> PreTrainedModel:
    """Made where it will run: 16 GB of random numbers never cross the bus."""
    with device:
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.bfloat16, attn_implementation=attention
        )
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def num_weight_bytes(model: PreTrainedModel) -> int:
    """All weights; the embedding is counted too, as published rooflines do."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def roofline_tok_s(workload: Workload, num_weight_bytes: int, bandwidth: float) -> float:
    """Tokens a second of a batch that reads all weights and its KV cache once a step."""
    mean_context = workload.prompt_tokens + workload.output_tokens / 2
    num_cache_bytes = workload.batch * mean_context * workload.kv_shape.bytes_per_token
    return workload.batch * bandwidth / (num_weight_bytes + num_cache_bytes)


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second, read and written, of the best of some copies in device memory."""
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _copy_seconds_cuda if device.type == "cuda" else _copy_seconds
    best = min(seconds(target, source) for _ in range(10))
    del source, target
    if device.type == "cuda":
        torch.cuda.empty_cache()  # or an engine would see less free memory
    return 2 * num_bytes / best


def _copy_seconds_cuda(target: torch.Tensor, source: torch.Tensor) -> float:
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    target.copy_(source)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def _copy_seconds(target: torch.Tensor, source: torch.Tensor) -> float:
    started = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - started


def _decode(ours: OwnEngine, jobs: Sequence[Job]) -> tuple[float, float]:
    """Tokens a second once all decode, and the seconds from the first submit to the last token."""
    started = time.perf_counter()
    rate = ours.decode_rate(jobs)
    return rate, time.perf_counter() - started
