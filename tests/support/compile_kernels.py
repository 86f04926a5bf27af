"""Compiles the kernels to machine code for a GPU that need not be there. Run as a program.

`python -m tests.support.compile_kernels 90` calls the launchers as a step does, but with a driver
that only says what GPU to compile for. Prints one line a kernel: name, bytes of shared memory.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from workers.inference.engine.cuda.launch import Formula
from workers.inference.engine.cuda.trial import Span, Trial
from workers.inference.engine.kv_cache import KVShape

_BF16, _FP16, _FP32 = torch.bfloat16, torch.float16, torch.float32
_SHAPES = (  # query heads, KV heads, head size, dtype
    (32, 8, 128, _BF16),
    (4, 1, 256, _BF16),
    (9, 3, 64, _BF16),
    (12, 12, 80, _BF16),
    (32, 8, 128, _FP16),
    (32, 8, 128, _FP32),
    (4, 1, 256, _FP32),
)
_FORMULAS = (Formula(0.1), Formula(0.1, window=512, softcap=50.0))


class AbsentGpu:
    """As much of a driver as compiling takes."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    driver.set_active(AbsentGpu(int(sys.argv[1])))
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = run(self, *args, **{**kwargs, "warmup": True})
        assert compiled.asm["cubin"]
        print(self.__name__, compiled.metadata.shared)

    JITFunction.run = compile_only
    for num_heads, num_kv_heads, head_dim, dtype in _SHAPES:
        for formula in _FORMULAS:
            Trial(
                num_heads,
                KVShape(1, num_kv_heads, head_dim, dtype),
                formula,
                spans=(Span(300, 1), Span(0, 40)),
                num_decodes=1,
                num_splits=8,
            ).run(torch.device("cpu"))


if __name__ == "__main__":
    main()
