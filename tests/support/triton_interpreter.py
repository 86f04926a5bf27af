"""Makes Triton's interpreter multiply bf16: it holds that as integers, and multiplies those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does: exact products, summed in float32."""
    dot = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, _in_float32(a), _in_float32(b), *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def _in_float32(operand: Any) -> Any:
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    bits = operand.data.astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32), tl.float32)
