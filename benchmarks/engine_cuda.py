"""Decoding on a GPU: random weights of a Llama-3.1-8B shape, built on the device, nothing on disk.

Our engine decodes a batch of 64; that is compared with what the memory allows (every weight and
every cached token read once a step, at the copy bandwidth measured in the same run), and the whole
of the workload with transformers' continuous batching, interleaved.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks import random_model
from benchmarks.engine_probes import Figures
from benchmarks.figures import median_of, range_of
from benchmarks.own_engine import NAME, OwnEngine
from benchmarks.peers import continuous_batching
from benchmarks.workload import Job
from workers.inference.engine.attention import ATTENTION_NAME, paged_attention
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.kv_cache import KVShape
from workers.inference.engine.millrace import MillraceEngine
from workers.inference.engine.model import LoadedModel, ModelText
from workers.inference.engine.protocol import ModelInfo

BATCH, PROMPT_TOKENS, OUTPUT_TOKENS = 64, 512, 512
_CONFIG = LlamaConfig(
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
)
_KV_SHAPE = KVShape(num_layers=32, num_kv_heads=8, head_dim=128, dtype=torch.bfloat16)
_CB_BLOCKS = 2 * BATCH * (PROMPT_TOKENS + OUTPUT_TOKENS) // continuous_batching.PAGE_SIZE
_CB_TOKENS_PER_STEP = 8_192
_COPY_BYTES = 4 * 2**30


class RandomWeightsEngine(MillraceEngine):
    """Our engine, but its weights come from nowhere."""

    def _load_weights(self, spec: ModelSpec) -> LoadedModel:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
        model = random_llama(self._device, ATTENTION_NAME)
        info = ModelInfo(
            name=spec.name,
            context_length=_CONFIG.max_position_embeddings,
            vocab_size=_CONFIG.vocab_size,
            dtype="bf16",
            num_bytes=num_weight_bytes(model),
        )
        text = ModelText(random_model.word_tokenizer(_CONFIG.vocab_size), frozenset())
        return LoadedModel(model, text, info, _KV_SHAPE)


def run(device_name: str, rounds: int) -> Figures:
    """All figures. Needs about 50 GiB on the device."""
    device = torch.device(device_name)
    jobs = _jobs()
    bandwidth = copy_bandwidth(device)
    ours = OwnEngine(
        RandomWeightsEngine(
            EngineConfig(
                device=device_name,
                models=(ModelSpec(name=NAME, path="", dtype="bf16"),),
                max_num_seqs=BATCH,
                kv_memory_share=0.3,
            )
        )
    )
    peer = random_llama(device, "sdpa")
    num_bytes = num_weight_bytes(peer)
    manager = continuous_batching.start_manager(
        peer, num_blocks=_CB_BLOCKS, max_batch_tokens=_CB_TOKENS_PER_STEP
    )
    decode_rates, ratios = [], []
    for number in range(rounds + 1):  # the first warms both up
        rate, seconds = _decode(ours, jobs)
        started = time.perf_counter()
        continuous_batching.run(manager, jobs)
        if number:
            decode_rates.append(rate)
            ratios.append((time.perf_counter() - started) / seconds)
    attention = peer.config._attn_implementation
    manager.stop(block=True, timeout=30)
    ours.close()
    roofline = roofline_tok_s(num_bytes, bandwidth)
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
        "transformers_cb_attention": attention,
        "rounds": rounds,
        "machine": torch.cuda.get_device_name(device),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def random_llama(device: torch.device, attention: str) -> PreTrainedModel:
    """Made where it will run: 16 GB of random numbers never cross the bus."""
    with device:
        model = AutoModelForCausalLM.from_config(
            _CONFIG, dtype=torch.bfloat16, attn_implementation=attention
        )
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def num_weight_bytes(model: PreTrainedModel) -> int:
    """All weights; the embedding is counted too, as published rooflines do."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def roofline_tok_s(num_weight_bytes: int, bandwidth: float) -> float:
    """Tokens a second of a batch that reads all weights and its KV cache once a step."""
    mean_context = PROMPT_TOKENS + OUTPUT_TOKENS / 2
    num_bytes = num_weight_bytes + BATCH * mean_context * _KV_SHAPE.bytes_per_token
    return BATCH * bandwidth / num_bytes


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of the best of some copies in device memory."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(10):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return 2 * _COPY_BYTES / min(times)


def _decode(ours: OwnEngine, jobs: Sequence[Job]) -> tuple[float, float]:
    """Tokens a second once all decode, and the seconds from the first submit to the last token."""
    started = time.perf_counter()
    rate = ours.decode_rate(jobs)
    return rate, time.perf_counter() - started


def _jobs() -> list[Job]:
    source = random.Random(0)
    prompts = (tuple(source.randint(3, 4_000) for _ in range(PROMPT_TOKENS)) for _ in range(BATCH))
    return [Job(prompt, OUTPUT_TOKENS) for prompt in prompts]
