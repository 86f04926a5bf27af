"""What a model's folder holds, read without loading a weight."""

from __future__ import annotations

from pathlib import Path

from transformers.utils.hub import cached_file

from workers.inference.engine.checkpoint import ReadFile
from workers.inference.engine.errors import EngineError
from workers.inference.engine.weight_files import (
    INDEX,
    WEIGHTS,
    Tensor,
    check_stored,
    read_tensors,
)

# What a weight takes once it is loaded. The quantised kinds keep some tensors wider, and scales.
_BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.1, "nf4": 0.6}


def reader(path: str, *, revision: str | None, is_local: bool) -> ReadFile:
    """Reads files of a model by name. Raises EngineError for a folder that isn't there."""

    def read(name: str) -> bytes | None:
        file = find_file(path, name, revision=revision, is_local=is_local)
        return file.read_bytes() if file is not None else None

    return read


def check_weights(
    path: str, dtype: str, free_bytes: int, *, revision: str | None, is_quantised: bool
) -> None:
    """Refuse weights that the free memory can't hold, that are damaged, or that nothing explains.

    As far as their files are here already. `is_quantised`: the config says how they are stored.
    """
    tensors = _tensors_here(path, revision)
    check_stored(tensors, is_quantised=is_quantised)
    if is_quantised:
        needed = float(sum(tensor.num_bytes for tensor in tensors))
    else:
        needed = sum(tensor.num_weights for tensor in tensors) * _BYTES_PER_WEIGHT[dtype]
    if needed > free_bytes:
        message = (
            f"{sum(tensor.num_weights for tensor in tensors):,} weights take "
            f"{needed / 2**20:,.0f} MiB as {dtype}, {free_bytes / 2**20:,.0f} MiB are free"
        )
        raise EngineError("out_of_memory", message)


def model_file(path: str, name: str, *, revision: str | None, is_local: bool) -> Path:
    """Raises EngineError if there is none."""
    found = find_file(path, name, revision=revision, is_local=is_local)
    if found is None:
        raise EngineError("model_unsupported", f"the model has no {name}")
    return found


def find_file(path: str, name: str, *, revision: str | None, is_local: bool) -> Path | None:
    """A file of a folder or of the hub's cache; downloaded where that is allowed."""
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise EngineError("model_load_failed", f"there is no folder {path}")
    found = cached_file(
        path,
        name,
        revision=revision,
        local_files_only=is_local,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _tensors_here(path: str, revision: str | None) -> list[Tensor]:
    if Path(path).is_dir():
        return read_tensors(Path(path), is_whole=True)
    for name in (WEIGHTS, INDEX):
        if (file := find_file(path, name, revision=revision, is_local=True)) is not None:
            return read_tensors(file.parent, is_whole=False)
    return []
