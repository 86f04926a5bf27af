"""The kernels compile to machine code for GPUs that are not here, and fit into their memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Bytes of shared memory that one block of threads may take, by compute capability.
SHARED_BYTES = {
    80: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}


@pytest.mark.parametrize(
    "capability",
    [80, 90, *(pytest.param(other, marks=pytest.mark.slow) for other in (89, 100, 120))],
)
def test_kernels_compile_and_fit(capability: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compile_kernels", str(capability)],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in compiled} == {"write_pages", "attend", "join_splits"}
    assert max(int(num_bytes) for _, num_bytes in compiled) <= SHARED_BYTES[capability]
