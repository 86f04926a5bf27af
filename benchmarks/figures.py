"""Medians with ranges, and the JSON object a benchmark ends with."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path


def median_of(values: Sequence[float], digits: int = 4) -> float:
    """The middle value."""
    return round(statistics.median(values), digits)


def range_of(values: Sequence[float], digits: int = 4) -> list[float]:
    """Smallest and largest."""
    return [round(min(values), digits), round(max(values), digits)]


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def machine() -> str:
    """The processor, for the record."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names) or '?'} x {names[0] if names else platform.processor()}"


def finish(figures: Mapping[str, object], *, as_json: bool) -> None:
    """Print every figure; with `as_json` one object on the last line."""
    for name, value in figures.items():
        print(f"{name:32} {value}")
    if as_json:
        print(json.dumps(figures))
