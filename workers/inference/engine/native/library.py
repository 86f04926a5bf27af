"""The compiled step, called through ctypes. The structs mirror those in step.cpp."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch

from workers.inference.engine.native.build import built_library

PAGE = 16  # tokens; kPage in attention.h
MAX_HEAD_DIM = 256  # kMaxHeadDim in attention.h
LANES = 16


class LayerWeights(Structure):
    _fields_ = [
        ("attention_norm", c_void_p),
        ("attention_post_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("mlp_post_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("qkv", c_void_p),
        ("qkv_bias", c_void_p),
        ("output", c_void_p),
        ("gate_up", c_void_p),
        ("down", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int64),
    ]


class ModelWeights(Structure):
    _fields_ = [
        ("is_bf16", c_int32),
        ("activation", c_int32),
        ("hidden", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("intermediate", c_int64),
        ("vocab", c_int64),
        ("num_layers", c_int64),
        ("norm_eps", c_float),
        ("qk_norm_eps", c_float),
        ("attention_scale", c_float),
        ("embedding_scale", c_float),
        ("embedding", c_void_p),
        ("head", c_void_p),
        ("final_norm", c_void_p),
        ("layers", POINTER(LayerWeights)),
    ]


class StepInput(Structure):
    _fields_ = [
        ("num_rows", c_int64),
        ("num_sequences", c_int64),
        ("num_outputs", c_int64),
        ("token_ids", c_void_p),
        ("sequences", c_void_p),  # int32 [num_sequences, 4]: first_row, num_rows, start, first_page
        ("pages", c_void_p),
        ("output_rows", c_void_p),
        ("logits", c_void_p),
    ]


@functools.cache
def library() -> ctypes.CDLL:
    """The library with its signatures declared. Raises BuildError."""
    loaded = ctypes.CDLL(str(built_library()))
    loaded.millrace_create.argtypes = [POINTER(ModelWeights), c_void_p]
    loaded.millrace_create.restype = c_void_p
    loaded.millrace_run.argtypes = [c_void_p, POINTER(StepInput), c_int]
    loaded.millrace_run.restype = c_int
    loaded.millrace_destroy.argtypes = [c_void_p]
    loaded.millrace_destroy.restype = None
    return loaded


@functools.cache
def run_parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch uses; None: there is none."""
    folder = Path(torch.__file__).parent
    for path in (*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")):
        function = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if function is not None:
            return ctypes.cast(function, c_void_p).value
    return None


class Runner:
    """One model in compiled code. One thread at a time; the GIL is free while it computes."""

    def __init__(self, weights: ModelWeights) -> None:
        self._library = library()
        self._handle = self._library.millrace_create(ctypes.byref(weights), run_parallel())
        self._run: Callable[..., int] = self._library.millrace_run

    def __del__(self) -> None:
        if handle := getattr(self, "_handle", None):
            self._library.millrace_destroy(handle)

    def run(self, step: StepInput) -> None:
        """Raises MemoryError."""
        if self._run(self._handle, ctypes.byref(step), torch.get_num_threads()):
            raise MemoryError("no memory for the activations of a step")
