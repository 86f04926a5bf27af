"""Loading a model; the only place that reads weights. Safetensors only, no code of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from workers.inference.engine.attention import ATTENTION_NAME, paged_attention
from workers.inference.engine.checkpoint import check_checkpoint, check_vocabulary
from workers.inference.engine.config import ModelSpec
from workers.inference.engine.errors import EngineError
from workers.inference.engine.kv_cache import KVShape
from workers.inference.engine.load_progress import OnShare, ignore_share, watch_loading
from workers.inference.engine.loading_report import check_loaded
from workers.inference.engine.memory import free_bytes
from workers.inference.engine.model_files import check_weights, model_file, reader
from workers.inference.engine.protocol import ModelInfo

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_QUANTISED = ("int8", "nf4")
_DEFAULT_CONTEXT = 2048  # tokens, for a config that names none


@dataclass(frozen=True, slots=True)
class ModelText:
    """How token ids become text, and which of them end it."""

    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, with everything the runner needs to know of it."""

    model: PreTrainedModel
    text: ModelText
    info: ModelInfo
    kv_shape: KVShape


def load_model(
    spec: ModelSpec,
    device: torch.device,
    *,
    is_hub_allowed: bool,
    on_share: OnShare = ignore_share,
) -> LoadedModel:
    """Blocks for seconds to minutes; `on_share` hears of every weight that was read.

    Raises EngineError for a model that can't be served.
    """
    try:
        with watch_loading(on_share):
            return _load(spec, device, is_local=not is_hub_allowed)
    except EngineError:
        raise
    except Exception as error:  # a broken file fails in many ways, by three libraries' own errors
        message = f"model {spec.name} can't be loaded: {type(error).__name__}: {error}"
        raise EngineError("model_load_failed", message) from error


def choose_device(wanted: str) -> torch.device:
    """What `auto` means: the first GPU if there is one, else the CPU."""
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def choose_dtype(wanted: str, device: torch.device) -> str:
    """What `auto` means: bf16 where the device computes in it, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16"
    cpu = torch.cpu.get_capabilities()
    return "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"


def _load(spec: ModelSpec, device: torch.device, *, is_local: bool) -> LoadedModel:
    read = reader(spec.path, revision=spec.revision, is_local=is_local)
    wanted = check_checkpoint(read, spec.dtype)
    tokenizer_file = model_file(
        spec.path, "tokenizer.json", revision=spec.revision, is_local=is_local
    )
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    dtype = choose_dtype(wanted, device)
    is_quantised = dtype in _QUANTISED and check_checkpoint(read, "auto") == dtype
    check_weights(
        spec.path,
        dtype,
        free_bytes(device),
        revision=spec.revision,
        is_quantised=is_quantised,
    )
    model = _load_weights(spec, dtype, device, is_local=is_local, is_quantised=is_quantised)
    config = model.config.get_text_config()
    info = ModelInfo(
        name=spec.name,
        context_length=_context_length(config, spec.max_context),
        vocab_size=config.vocab_size,
        dtype=dtype,
        num_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
    )
    check_vocabulary(read, info.vocab_size)
    text = ModelText(tokenizer, _eos_token_ids(model))
    return LoadedModel(model, text, info, _kv_shape(config, model))


def _load_weights(
    spec: ModelSpec, dtype: str, device: torch.device, *, is_local: bool, is_quantised: bool
) -> PreTrainedModel:
    """`is_quantised`: the weights are stored so, and the checkpoint's own settings count."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, paged_attention)
    on_device: dict[str, Any] = {}
    if dtype in _QUANTISED:
        on_device["device_map"] = {"": device}
        if not is_quantised:
            on_device["quantization_config"] = _quantisation(dtype, device)
    model, report = AutoModelForCausalLM.from_pretrained(
        spec.path,
        revision=spec.revision or "main",
        dtype=_compute_dtype(dtype, device),
        attn_implementation="eager",  # some choose their classes by it; ours is set afterwards
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=is_local,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # the report names them, and then they are refused
        **on_device,
    )
    assert isinstance(model, PreTrainedModel)
    check_loaded(model, report)
    if not on_device:
        torch.nn.Module.to(model, device)
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def _quantisation(dtype: str, device: torch.device) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_8bit=dtype == "int8",
        load_in_4bit=dtype == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=_compute_dtype(dtype, device),
    )


def _compute_dtype(dtype: str, device: torch.device) -> torch.dtype:
    return _TORCH_DTYPES[choose_dtype("auto", device) if dtype in _QUANTISED else dtype]


def _context_length(config: PretrainedConfig, max_context: int | None) -> int:
    """Tokens. Capped where positions beyond would be computed differently from positions before."""
    lengths = [getattr(config, "max_position_embeddings", None) or _DEFAULT_CONTEXT]
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        lengths.append(rope.get("original_max_position_embeddings") or lengths[0])
    if max_context is not None:
        lengths.append(max_context)
    return int(min(lengths))


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    generation = model.generation_config
    ids = generation.eos_token_id if isinstance(generation, GenerationConfig) else None
    if ids is None:
        ids = model.config.get_text_config().eos_token_id
    if ids is None:
        return frozenset()
    return frozenset([ids] if isinstance(ids, int) else ids)


def _kv_shape(config: PretrainedConfig, model: PreTrainedModel) -> KVShape:
    other = {*(getattr(config, "layer_types", None) or ())}
    other -= {"full_attention", "sliding_attention"}
    if other:
        raise EngineError("model_unsupported", f"layers of type {sorted(other)} are not supported")
    num_heads = config.num_attention_heads
    return KVShape(
        num_layers=config.num_hidden_layers,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        dtype=model.dtype,
    )
