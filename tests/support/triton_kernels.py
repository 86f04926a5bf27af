"""Where the kernels of the engine are tested: on the GPU if there is one, else interpreted."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch


def has_triton() -> bool:
    """False where Triton is not installed: tests of the kernels are left out. An error in CI."""
    is_installed = find_spec("triton") is not None
    if os.environ.get("CI") and not is_installed:
        raise RuntimeError("Triton is missing: the tests of the kernels would not run")
    return is_installed


def kernel_device() -> torch.device:
    """Interpreted kernels take tensors of the CPU."""
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return torch.device("cpu" if is_interpreted else "cuda:0")
