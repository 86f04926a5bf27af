"""Reads a Llama-like transformers model into the layout that the compiled step wants.

What a module computes is found by asking the module, not by its name: a norm's effective weight is
what it makes of ones, rotary tables are what the model's own embedding returns. Where that goes
wrong, the comparison of logits in native/forward.py refuses the model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import gelu, pad, silu
from transformers import PreTrainedModel

from workers.inference.engine.memory import zeros_on_huge_pages
from workers.inference.engine.native.library import (
    LANES,
    MAX_HEAD_DIM,
    LayerWeights,
    ModelWeights,
)

_PANEL = 32  # kPanel in gemm.h
# enum Activation in rows.h
_ACTIVATIONS: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    silu,
    lambda x: gelu(x, approximate="tanh"),
)


class UnsupportedModelError(Exception):
    """The compiled step can't compute this model; the general path can."""


class NativeWeights:
    """The structs of one model, and the tensors their pointers point into.

    Takes the matrices away from the model as it reads them, so that there is never more than one
    layer twice. Raises UnsupportedModelError; the model is spoilt then, too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context_length: int,
        *,
        on_layer: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_layer` hears of every layer that was packed."""
        self._on_layer = on_layer
        try:
            self._read(model, context_length)
        except (AttributeError, TypeError, LookupError, ValueError, RuntimeError) as error:
            raise UnsupportedModelError(f"not built like Llama: {error}") from error

    def use_cache(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Point every layer at its part of the KV cache; both [num_layers, ...]."""
        self._cache = (keys, values)
        for layer, own_keys, own_values in zip(self.layers, keys, values, strict=True):
            layer.keys, layer.values = own_keys.data_ptr(), own_values.data_ptr()

    @contextmanager
    def cut_windows(self, length: int, is_cut: Callable[[int], bool]) -> Iterator[None]:
        """Within it every window that `is_cut` names is `length` tokens long."""
        before = [layer.window for layer in self.layers]
        for layer in self.layers:
            layer.window = length if is_cut(layer.window) else layer.window
        try:
            yield
        finally:
            for layer, window in zip(self.layers, before, strict=True):
                layer.window = window

    def _read(self, model: PreTrainedModel, context_length: int) -> None:
        self._kept: list[torch.Tensor] = []
        self._dtype = model.dtype
        self._context_length = context_length
        decoder = model.get_decoder()
        self._rotary = decoder.rotary_emb
        self._rotary_tables: dict[str | None, tuple[int, int]] = {}
        config = model.config.get_text_config()
        _require(self._dtype in (torch.float32, torch.bfloat16), f"dtype {self._dtype}")
        for name in ("final_logit_softcapping", "attn_logit_softcapping"):
            _require(not getattr(config, name, None), name)
        attention = decoder.layers[0].self_attn
        self.struct = ModelWeights(
            is_bf16=self._dtype == torch.bfloat16,
            activation=_activation(decoder.layers[0].mlp.act_fn),
            hidden=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            num_layers=len(decoder.layers),
            norm_eps=_eps(decoder.norm),
            qk_norm_eps=_eps(getattr(attention, "q_norm", None)),
            attention_scale=attention.scaling,
            embedding_scale=_embedding_scale(decoder.embed_tokens, self._dtype),
            embedding=self._keep(decoder.embed_tokens.weight),
        )
        self._check_shape(self.struct)
        self.struct.final_norm = self._norm(decoder.norm)
        self.struct.head = self._pack(model.get_output_embeddings().weight)
        self.layers = (LayerWeights * len(decoder.layers))(
            *(self._layer(layer, config, i) for i, layer in enumerate(decoder.layers))
        )
        self.struct.layers = ctypes.cast(self.layers, ctypes.POINTER(LayerWeights))

    def _layer(self, layer: Any, config: Any, index: int) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        layer_types = getattr(config, "layer_types", None)
        layer_type = layer_types[index] if layer_types else None
        cos, sin = self._rotary_table(layer_type)
        weights = LayerWeights(
            query_norm=self._norm(getattr(attention, "q_norm", None)),
            key_norm=self._norm(getattr(attention, "k_norm", None)),
            qkv_bias=self._bias(projections),
            qkv=self._pack(torch.cat([_take(p, may_have_bias=True) for p in projections])),
            output=self._pack(_take(attention.o_proj)),
            gate_up=self._pack(_interleave(_take(mlp.gate_proj), _take(mlp.up_proj))),
            down=self._pack(_take(mlp.down_proj)),
            cos=cos,
            sin=sin,
            window=_window(attention, config, layer_type),
        )
        for name, norm in _norms(layer):
            setattr(weights, name, self._norm(norm))
        self._on_layer()
        return weights

    def _check_shape(self, shape: ModelWeights) -> None:
        for name in ("hidden", "head_dim", "intermediate"):
            _require(getattr(shape, name) % LANES == 0, f"{name} is not a multiple of {LANES}")
        _require(shape.head_dim <= MAX_HEAD_DIM, f"head_dim {shape.head_dim}")

    def _keep(self, tensor: torch.Tensor) -> int:
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _norm(self, module: Any) -> int | None:
        """The weight that an RMSNorm applies, be it stored as w or as w - 1."""
        if module is None:
            return None
        size = module.weight.shape[-1]
        ones = torch.ones(size, dtype=torch.float32)
        weight = module(ones) * (1 + _eps(module)) ** 0.5
        tilted = torch.linspace(1, 2, size)
        expected = tilted * (tilted.square().mean() + _eps(module)).rsqrt() * weight
        _require(torch.allclose(module(tilted), expected, rtol=1e-2), "a norm is not an RMSNorm")
        return self._keep(weight.float())

    def _pack(self, weight: torch.Tensor) -> int:
        return self._keep(pack(weight.to(self._dtype)))

    def _bias(self, projections: tuple[Any, ...]) -> int | None:
        if all(p.bias is None for p in projections):
            return None
        biases = [
            p.weight.new_zeros(len(p.weight)) if p.bias is None else p.bias for p in projections
        ]
        return self._keep(torch.cat(biases).float())

    def _rotary_table(self, layer_type: str | None) -> tuple[int, int]:
        if layer_type not in self._rotary_tables:
            positions = torch.arange(self._context_length)[None]
            like = torch.zeros(1, dtype=torch.float32)
            try:
                cos, sin = self._rotary(like, positions)
            except TypeError:  # one set of frequencies per type of layer
                cos, sin = self._rotary(like, positions, layer_type)
            half = cos.shape[-1] // 2
            _require(cos.shape[-1] == self.struct.head_dim, "rotary positions on a part of a head")
            table = (self._keep(cos[0, :, :half]), self._keep(sin[0, :, :half]))
            self._rotary_tables[layer_type] = table
        return self._rotary_tables[layer_type]


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs] to panels as gemm.h describes them; outputs are padded with zeros."""
    unit = 2 if weight.dtype == torch.bfloat16 else 1
    num_outputs, num_inputs = weight.shape
    padded = pad(weight, (0, 0, 0, -num_outputs % _PANEL))
    panels = padded.view(-1, 2, LANES, num_inputs // unit, unit).permute(0, 3, 1, 2, 4)
    return zeros_on_huge_pages(panels.shape, weight.dtype).copy_(panels)


def _interleave(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """16 rows of one, then 16 of the other, so that both sums meet in one panel."""
    pairs = torch.stack([gate.view(-1, LANES, gate.shape[1]), up.view(-1, LANES, up.shape[1])], 1)
    return pairs.view(-1, gate.shape[1])


def _norms(layer: Any) -> Iterator[tuple[str, Any]]:
    """The norms around a layer's two halves, before and (Gemma) also after each."""
    yield "attention_norm", layer.input_layernorm
    if hasattr(layer, "pre_feedforward_layernorm"):
        yield "attention_post_norm", layer.post_attention_layernorm
        yield "mlp_norm", layer.pre_feedforward_layernorm
        yield "mlp_post_norm", layer.post_feedforward_layernorm
    else:
        yield "mlp_norm", layer.post_attention_layernorm


def _take(linear: Any, *, may_have_bias: bool = False) -> torch.Tensor:
    """The weight of a linear layer, which has none any more afterwards."""
    _require(type(linear) is torch.nn.Linear, f"{type(linear).__name__} instead of a plain Linear")
    _require(may_have_bias or linear.bias is None, "a bias outside of the attention's inputs")
    weight: torch.Tensor = linear.weight.data
    linear.weight.data = weight.new_empty(0)
    return weight


def _activation(function: Any) -> int:
    x = torch.linspace(-4, 4, 33)
    for number, known in enumerate(_ACTIVATIONS):
        if torch.allclose(function(x), known(x), atol=1e-5):
            return number
    raise UnsupportedModelError("an activation other than SiLU and GELU (tanh)")


def _embedding_scale(embedding: Any, dtype: torch.dtype) -> float:
    scale = getattr(embedding, "embed_scale", 1.0)
    return float(torch.as_tensor(scale).to(dtype))


def _eps(norm: Any) -> float:
    if norm is None:
        return 0.0
    for name in ("variance_epsilon", "eps"):
        if hasattr(norm, name):
            return float(getattr(norm, name))
    raise UnsupportedModelError("a norm without an epsilon")


def _window(attention: Any, config: Any, layer_type: str | None) -> int:
    if layer_type == "full_attention":
        return 0
    window = getattr(attention, "sliding_window", None) or getattr(config, "sliding_window", None)
    return int(window or 0)


def _require(is_met: bool, what: str) -> None:
    if not is_met:
        raise UnsupportedModelError(what)
