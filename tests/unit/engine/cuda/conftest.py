"""Without Triton there are no kernels to test."""

from __future__ import annotations

from tests.support.triton_kernels import has_triton

collect_ignore = [] if has_triton() else ["test_kernels.py", "test_compilation.py"]
