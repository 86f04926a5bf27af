"""What a model's folder holds, read without loading a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from transformers.utils.hub import cached_file

from workers.inference.engine.errors import EngineError

# What a weight takes once it is loaded. The quantised kinds keep some tensors wider, and scales.
_BYTES_PER_WEIGHT = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.1, "nf4": 0.6}
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(path: str, *, is_local: bool) -> dict[str, object]:
    """The parsed config.json. Raises EngineError for one that names code to run."""
    config: dict[str, object] = json.loads(model_file(path, "config.json", is_local).read_text())
    check_config(config)
    return config


def check_config(config: object) -> None:
    """Refuse a config.json that names code to run; `config` is the parsed file."""
    for key in _keys(config):
        if key == "auto_map" or "_implementation" in key:
            message = f"the model's config has the key {key}, which could name code to run"
            raise EngineError("model_unsupported", message)


def check_fits(path: str, dtype: str, free_bytes: int) -> None:
    """Refuse weights that the free memory can't hold, as far as their files are here already."""
    num_weights = sum(_num_weights(file) for file in _weight_files(path))
    needed = num_weights * _BYTES_PER_WEIGHT[dtype]
    if needed > free_bytes:
        message = (
            f"{num_weights:,} weights take {needed / 2**20:,.0f} MiB as {dtype}, "
            f"{free_bytes / 2**20:,.0f} MiB are free"
        )
        raise EngineError("out_of_memory", message)


def model_file(path: str, name: str, is_local: bool) -> Path:
    """Raises EngineError if there is none."""
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise EngineError("model_load_failed", f"there is no folder {path}")
    found = cached_file(path, name, local_files_only=is_local)
    if found is None:
        raise EngineError("model_unsupported", f"the model at {path} has no {name}")
    return Path(found)


def _weight_files(path: str) -> Iterator[Path]:
    if (index := _find(path, _INDEX)) is not None:
        names = set(json.loads(index.read_text())["weight_map"].values())
        yield from (index.parent / name for name in sorted(names))
    elif (weights := _find(path, _WEIGHTS)) is not None:
        yield weights


def _find(path: str, name: str) -> Path | None:
    found = cached_file(
        path,
        name,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _num_weights(file: Path) -> int:
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _keys(config: object) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield str(key)
            yield from _keys(value)
    elif isinstance(config, list):
        for value in config:
            yield from _keys(value)
