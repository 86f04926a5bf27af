"""What a folder's weight files say of themselves: which tensors there are, and how they are stored.

Read from their headers, without torch, so that the catalog sees what is damaged before any worker.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.inference.engine.errors import EngineError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_OTHER_FORMATS = ("*.gguf", "pytorch_model*.bin", "consolidated*.pth", "*.h5", "*.msgpack")
_LENGTH = struct.Struct("<Q")  # of the header, in bytes; it stands at the beginning
_MAX_HEADER_BYTES = 100_000_000
_PLAIN_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header of its file describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_weights(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return math.ceil(self.num_weights * _bits_of(self.dtype) / 8)

    @property
    def is_plain(self) -> bool:
        """Whether it holds floating point numbers that mean themselves."""
        return self.dtype in _PLAIN_DTYPES

    @property
    def is_packed(self) -> bool:
        """Whether a config has to say what its numbers mean. Those of positions and masks don't."""
        if self.is_plain:
            return False
        is_matrix = len(self.shape) > 1 and self.dtype in ("I8", "U8")
        is_weight = self.name.endswith("weight") or (is_matrix and not self.name.endswith("bias"))
        return is_weight or self.dtype.startswith("F")


def read_tensors(folder: Path, *, is_whole: bool) -> list[Tensor]:
    """Of all weight files there, as transformers chooses them; of a folder without any, none.

    `is_whole`: nothing will be downloaded, so what is named and not there is missing. Raises
    EngineError for files that are damaged.
    """
    if (folder / WEIGHTS).exists():
        return _tensors(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        _refuse_other_formats(folder)
        return []
    return [tensor for shard in _shards(folder, is_whole=is_whole) for tensor in shard]


def check_stored(tensors: Sequence[Tensor], *, is_quantised: bool) -> None:
    """Refuse numbers that no config explains, or a config that explains what isn't there.

    `is_quantised`: the config says that a tool has quantised them.
    """
    if is_quantised:
        if tensors and all(tensor.is_plain for tensor in tensors):
            raise _refusal("its config says that its weights are quantised, its files hold none so")
        return
    for tensor in tensors:
        if tensor.is_packed:
            raise _refusal(
                f"its weights are stored as {tensor.dtype}, and its config doesn't say how"
            )


def _shards(folder: Path, *, is_whole: bool) -> Iterator[list[Tensor]]:
    named = _weight_map(folder / INDEX)
    for name in sorted(set(named.values())):
        file = folder / name
        if not file.exists():
            if is_whole:
                raise _damage(f"its files lack {name}")
            continue
        tensors = _tensors(file)
        there = {tensor.name for tensor in tensors}
        if absent := sorted(
            key for key, shard in named.items() if shard == name and key not in there
        ):
            raise _damage(f"{name} lacks {absent[0]}, which {INDEX} says it holds")
        yield tensors


def _weight_map(index: Path) -> Mapping[str, str]:
    """File of each tensor."""
    try:
        named = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _damage(f"{INDEX} holds no weight_map") from None
    if not isinstance(named, dict) or not all(map(_is_inside, named.values())):
        raise _damage(f"the weight_map of {INDEX} names no files of its folder")
    return named


def _is_inside(name: object) -> bool:
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _tensors(file: Path) -> list[Tensor]:
    """Raises EngineError unless the file is as long as its header says."""
    with file.open("rb") as opened:
        prefix = opened.read(_LENGTH.size)
        num_header = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else 0
        header = opened.read(num_header) if num_header <= _MAX_HEADER_BYTES else b""
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        num_data = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        tensors = [
            Tensor(name, str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for name, entry in entries.items()
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _damage(f"{file.name} is no safetensors file, or not whole") from None
    if file.stat().st_size != _LENGTH.size + num_header + num_data:
        raise _damage(f"{file.name} is not whole")
    return tensors


def _refuse_other_formats(folder: Path) -> None:
    found: Iterable[Path] = (file for kind in _OTHER_FORMATS for file in sorted(folder.glob(kind)))
    if (file := next(iter(found), None)) is not None:
        raise _refusal(f"its weights are in {file.name}: only safetensors are read")


def _bits_of(dtype: str) -> int:
    """By the number in its name: F16, U8, F8_E4M3."""
    found = re.search(r"\d+", dtype)
    return int(found.group()) if found else 8  # BOOL


def _damage(message: str) -> EngineError:
    return EngineError("model_load_failed", message)


def _refusal(message: str) -> EngineError:
    return EngineError("model_unsupported", message)
