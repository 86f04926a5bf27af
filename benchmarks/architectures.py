"""Every text architecture that transformers ships, tiny: served equal to it, refused, or wrong?

`python -m benchmarks.architectures --json` builds each from a small config with random weights wide
enough that mistakes show, and compares greedy tokens of the whole engine (prefill in chunks, beside
others) with the model's own. Each runs in a process of its own, which is killed when it is late.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

LIMIT_S = 90.0  # of one architecture
VOCAB_SIZE = 512
CONTEXT_LENGTH = 256
WINDOW = 40  # tokens; longer than what the proof cuts windows to, shorter than the prompts
NUM_TOKENS = 16
GAP = 0.02  # deviations of the logits: a token so near the best is rounding, not a mistake
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "conv_dim", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 128),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "intermediate_size_mlp"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 16,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), CONTEXT_LENGTH),
    **dict.fromkeys(("sliding_window", "attention_window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("attention_chunk_size", "sliding_window_size", "window_size"), WINDOW),
    "floor_scale": 32,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(("moe_num_experts",), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk"), 2),
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_topk"), 16),
    "index_head_dim": 16,
    "index_n_heads": 2,
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_d_state", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("ssm_state_size", "state_size", "chunk_size", "mamba_chunk_size"), 16),
    "mamba_d_ssm": 128,
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "laurel_rank"), 8),
    "lru_width": 64,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 16,
    "rotary_dim": 8,
}
_LATENT = {"num_key_value_heads": 4}
_WINDOWS = {"use_sliding_window": True, "max_window_layers": 2}
# What a config needs beside: sizes that depend on each other, and features that hide mistakes.
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("minicpm3", "youtu", "deepseek_v2", "deepseek_v3", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("axk1", "axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"), _LATENT),
    "longcat_flash": {**_LATENT, "num_layers": 2, "zero_expert_num": 2},
    "kimi_linear": {**_LATENT, "num_hidden_layers": 5},
    "bailing_hybrid": {**_LATENT, "layer_group_size": 2},
    "deepseek_v4": {"num_key_value_heads": 1},
    **dict.fromkeys(("qwen2_moe", "qwen2", "qwen3", "qwen3_moe"), _WINDOWS),
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma4_text": {"num_hidden_layers": 6},
    "gemma4_unified_text": {"num_hidden_layers": 6},
    "gemma3n_text": {"num_hidden_layers": 5, "num_kv_shared_layers": 0},
    "falcon": {"multi_query": True, "new_decoder_architecture": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "bamba": {"attn_layer_indices": [1, 3]},
    "mamba2": {"num_heads": 8, "expand": 2, "n_groups": 1},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mamba", "attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
    "rwkv": {"attention_hidden_size": 64, "context_length": CONTEXT_LENGTH},
    "xlstm": {"num_blocks": 4, "embedding_dim": 64},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16},
}


def architectures() -> list[str]:
    """Types of model that transformers' AutoModelForCausalLM knows."""
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 (slow)
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def save(model_type: str, folder: Path) -> None:
    """A tiny model of this type, with the tokenizer that tests use."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    from benchmarks.random_model import word_tokenizer  # noqa: PLC0415

    torch.manual_seed(3)
    config = tiny_config(model_type)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _widen(model)
    model.save_pretrained(folder)
    word_tokenizer(VOCAB_SIZE).save(str(folder / "tokenizer.json"))


def tiny_config(model_type: str) -> Any:
    """Small sizes where its config has the field; of a config with parts, within the parts too."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415

    kind = CONFIG_MAPPING[model_type]
    parts = {}
    for name, part in getattr(kind, "sub_configs", {}).items():
        if not hasattr(part, "__dataclass_fields__"):  # of a type that its default tells
            part = type(getattr(kind(), name))
        if hasattr(part, "__dataclass_fields__"):
            parts[name] = _shrunk(part, part.model_type).to_dict()
    return _shrunk(kind, model_type, parts)


def _shrunk(kind: Any, model_type: str, parts: dict[str, Any] | None = None) -> Any:
    fields = {*getattr(kind, "__dataclass_fields__", ()), *getattr(kind, "__annotations__", ())}
    values = {name: value for name, value in _SIZES.items() if name in fields}
    return kind(**(values | (parts or {}) | _OWN.get(model_type, {})))


def _widen(model: Any) -> None:
    """Weights as wide as make every part of the formula count; norms and biases too."""
    import torch  # noqa: PLC0415

    for name, parameter in model.named_parameters():
        if any(part in name.lower() for part in ("a_log", "dt_bias", "time_", "inv_freq", ".d")):
            if not name.endswith((".d", "_log", "dt_bias")) and parameter.ndim > 1:
                torch.nn.init.normal_(parameter.data, std=0.2)
        elif parameter.ndim == 1:
            is_scale = "norm" in name and name.endswith("weight")
            torch.nn.init.normal_(parameter.data, mean=float(is_scale), std=0.2)
        elif parameter.numel():
            torch.nn.init.normal_(parameter.data, std=0.2)


def try_folder(folder: Path, *, dtype: str = "fp32") -> dict[str, Any]:
    """`equal`, `refused` with the reason, or `wrong`, of a model's folder."""
    import torch  # noqa: PLC0415

    from workers.inference.engine.config import EngineConfig, ModelSpec  # noqa: PLC0415
    from workers.inference.engine.factory import build_engine  # noqa: PLC0415

    spec = ModelSpec(name="m", path=str(folder), dtype=dtype)  # type: ignore[arg-type]
    config = EngineConfig(models=(spec,), max_num_seqs=4, max_num_batched_tokens=16, num_threads=1)
    arrived: SimpleQueue[Any] = SimpleQueue()
    engine = build_engine(config)
    engine.start(arrived.put)
    if engine.refused:
        return {"result": "refused", "reason": engine.refused["m"]}
    generator = torch.Generator().manual_seed(11)
    limit = engine.models["m"].context_length
    prompts = [
        torch.randint(16, engine.models["m"].vocab_size, (n,), generator=generator).tolist()
        for n in (5, 37, 90)
        if n + NUM_TOKENS <= limit
    ]
    found = _generate(engine, arrived, prompts)
    engine.shutdown()
    gap = max(_gap(folder, prompt, tokens) for prompt, tokens in zip(prompts, found, strict=True))
    return {"result": "equal" if gap <= GAP else "wrong", "gap": round(gap, 4)}


def _generate(engine: Any, arrived: Any, prompts: list[list[int]]) -> list[list[int]]:
    from workers.inference.engine.protocol import EngineRequest, SamplingParams  # noqa: PLC0415

    greedy = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.submit(
            EngineRequest(request_id=str(i), model="m", prompt_token_ids=prompt, sampling=greedy)
        )
    found: list[list[int]] = [[] for _ in prompts]
    num_open = len(prompts)
    while num_open:
        for output in arrived.get():
            if output.error is not None:
                raise output.error
            found[int(output.request_id)] += output.token_ids
            num_open -= output.finish_reason is not None
    return found


def _gap(folder: Path, prompt: list[int], tokens: list[int]) -> float:
    """How far, at most, the model's own best token is ahead of the one that was said."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0].float()
    rows = logits[len(prompt) - 1 : -1]
    said = rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float(((rows.max(1).values - said) / rows.std(1)).max())


def _child(model_type: str, answer: Connection) -> None:
    with tempfile.TemporaryDirectory() as name:
        try:
            save(model_type, Path(name))
        except Exception as error:  # a config that these sizes don't fit: nothing of ours
            answer.send({"result": "not built", "reason": _line(error)})
            return
        answer.send(None)  # it is built
        try:
            answer.send(try_folder(Path(name)))
        except Exception as error:  # neither refused nor served: a fault of ours
            answer.send({"result": "wrong", "reason": _line(error)})


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def run(model_type: str) -> dict[str, Any]:
    """In a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(model_type, its), daemon=True)
    child.start()
    its.close()
    found = _answer(ours, died="not built") or _answer(ours, died="wrong")
    child.kill()
    child.join()
    assert found is not None
    return found


def _answer(child: Connection, *, died: str) -> dict[str, Any] | None:
    """What it says next: None once its model is built."""
    try:
        return child.recv() if child.poll(LIMIT_S) else {"result": "late", "reason": f"{LIMIT_S} s"}
    except EOFError:
        return {"result": died, "reason": "its process died"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="types of model; default: all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import workers.inference.engine.millrace  # noqa: F401, PLC0415 (inherited by every child)

    names = options.names or architectures()
    results = {}
    for number, name in enumerate(names, start=1):
        results[name] = run(name)
        reason = results[name].get("reason", "")
        line = f"{number}/{len(names)} {name}: {results[name]['result']} {reason}"
        print(line[:160], file=sys.stderr, flush=True)
    counts = Counter(found["result"] for found in results.values())
    if options.json:
        print(json.dumps({"counts": counts, "results": results}))
    else:
        print(dict(counts))
    sys.exit(int(counts["wrong"] > 0))


if __name__ == "__main__":
    main()
