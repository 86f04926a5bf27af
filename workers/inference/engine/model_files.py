"""What a model's folder holds, read without loading a weight."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from transformers.utils.hub import cached_file

from workers.inference.engine.checkpoint import ReadFile
from workers.inference.engine.errors import EngineError

# What a weight takes once it is loaded. The quantised kinds keep some tensors wider, and scales.
_BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.1, "nf4": 0.6}
_PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def reader(path: str, *, is_local: bool) -> ReadFile:
    """Reads files of a model by name. Raises EngineError for a folder that isn't there."""

    def read(name: str) -> bytes | None:
        file = find_file(path, name, is_local=is_local)
        return file.read_bytes() if file is not None else None

    return read


def check_weights(path: str, dtype: str, free_bytes: int, *, is_quantised: bool) -> None:
    """Refuse weights that the free memory can't hold, or that hold no plain numbers.

    As far as their files are here already. `is_quantised`: the config says how they are stored.
    """
    tensors = [tensor for file in _weight_files(path) for tensor in _tensors(file)]
    if is_quantised:
        needed = float(sum(tensor.num_bytes for tensor in tensors))
    else:
        _check_plain(tensors)
        needed = sum(tensor.num_weights for tensor in tensors) * _BYTES_PER_WEIGHT[dtype]
    if needed > free_bytes:
        message = (
            f"{sum(tensor.num_weights for tensor in tensors):,} weights take "
            f"{needed / 2**20:,.0f} MiB as {dtype}, {free_bytes / 2**20:,.0f} MiB are free"
        )
        raise EngineError("out_of_memory", message)


def model_file(path: str, name: str, is_local: bool) -> Path:
    """Raises EngineError if there is none."""
    found = find_file(path, name, is_local=is_local)
    if found is None:
        raise EngineError("model_unsupported", f"the model has no {name}")
    return found


def find_file(path: str, name: str, *, is_local: bool) -> Path | None:
    """A file of a folder or of the hub's cache; downloaded where that is allowed."""
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise EngineError("model_load_failed", f"there is no folder {path}")
    found = cached_file(
        path,
        name,
        local_files_only=is_local,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as the header of its file describes it."""

    name: str
    dtype: str
    num_weights: int
    num_bytes: int


def _check_plain(tensors: Sequence[_Tensor]) -> None:
    """Refuse matrices in a format that a config would have to explain, and doesn't."""
    for tensor in tensors:
        if tensor.name.endswith("weight") and tensor.dtype not in _PLAIN_DTYPES:
            message = f"its weights are stored as {tensor.dtype}, and its config doesn't say how"
            raise EngineError("model_unsupported", message)


def _weight_files(path: str) -> Iterator[Path]:
    if (index := find_file(path, _INDEX, is_local=True)) is not None:
        names = set(json.loads(index.read_text())["weight_map"].values())
        yield from (index.parent / name for name in sorted(names))
    elif (weights := find_file(path, _WEIGHTS, is_local=True)) is not None:
        yield weights


def _tensors(file: Path) -> Iterator[_Tensor]:
    if not file.exists():
        return
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (it is no mapping)
            part = tensors.get_slice(name)
            dtype, num_weights = part.get_dtype(), math.prod(part.get_shape())
            num_bytes = math.ceil(num_weights * _bits_of(dtype) / 8)
            yield _Tensor(name, dtype, num_weights, num_bytes)


def _bits_of(dtype: str) -> int:
    """By the number in its name: F16, U8, F8_E4M3."""
    found = re.search(r"\d+", dtype)
    return int(found.group()) if found else 8  # BOOL
