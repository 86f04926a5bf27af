"""How much memory there is, and how large pieces of it are taken."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
_HUGE_PAGE = 2**21  # bytes


def free_bytes(device: torch.device) -> int:
    """Memory that could be used now, in bytes; a container's limit counts."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = int(psutil.virtual_memory().available)
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used))
    return available


def zeros_on_huge_pages(size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A zeroed tensor in the CPU's memory, in pages of 2 MiB where the system grants them.

    What every step walks through is found with few address lookups that way, and first touched at
    the cost of few faults. Memory is taken when it is first written to.
    """
    num_bytes = prod(size) * dtype.itemsize
    memory = mmap.mmap(-1, num_bytes + 2 * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE
    return whole[start : start + num_bytes].view(dtype).view(tuple(size))


def _number(path: Path) -> int | None:
    """The content of a control file; None where there is none, or it says `max`."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
