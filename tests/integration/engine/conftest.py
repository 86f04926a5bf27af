"""Without Triton the path of CUDA devices can't be tested."""

from __future__ import annotations

from tests.support.triton_kernels import has_triton

collect_ignore = [] if has_triton() else ["test_cuda_forward.py"]
