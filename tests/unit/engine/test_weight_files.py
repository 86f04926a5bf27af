"""What headers of weight files tell, and which damage they show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from workers.inference.engine.errors import EngineError
from workers.inference.engine.weight_files import INDEX, check_stored, read_tensors

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of a matrix each."""
    weight_map = {}
    for number, name in enumerate(SHARDS):
        save_file({f"{number}.weight": np.ones((2, 3), np.float32)}, tmp_path / name)
        weight_map[f"{number}.weight"] = name
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def edit_index(folder: Path, **weight_map: str) -> None:
    document = json.loads((folder / INDEX).read_text())
    document["weight_map"] |= weight_map
    (folder / INDEX).write_text(json.dumps(document))


def test_all_shards_are_read(folder: Path) -> None:
    tensors = read_tensors(folder, is_whole=True)

    assert [(t.name, t.dtype, t.num_weights, t.num_bytes) for t in tensors] == [
        ("0.weight", "F32", 6, 24),
        ("1.weight", "F32", 6, 24),
    ]


def test_one_file_counts_before_an_index_as_it_does_when_weights_are_loaded(folder: Path) -> None:
    save_file({"whole": np.ones(1, np.float32)}, folder / "model.safetensors")

    assert [tensor.name for tensor in read_tensors(folder, is_whole=True)] == ["whole"]


def cut(folder: Path) -> None:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-1])


def cut_in_its_header(folder: Path) -> None:
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:20])


def with_a_header_of_any_length(folder: Path) -> None:
    (folder / SHARDS[1]).write_bytes(b"\xff" * 64)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, f"{SHARDS[1]} is not whole"),
        (cut_in_its_header, f"{SHARDS[1]} is no safetensors file, or not whole"),
        (with_a_header_of_any_length, f"{SHARDS[1]} is no safetensors file, or not whole"),
        (lambda folder: (folder / SHARDS[0]).write_bytes(b""), f"{SHARDS[0]} is no safetensors"),
        (lambda folder: (folder / SHARDS[0]).unlink(), f"its files lack {SHARDS[0]}"),
        (lambda folder: edit_index(folder, other=SHARDS[0]), f"{SHARDS[0]} lacks other, which"),
        (lambda folder: edit_index(folder, other="../x"), "names no files of its folder"),
        (lambda folder: (folder / INDEX).write_text("{}"), "holds no weight_map"),
        (lambda folder: (folder / INDEX).write_text("{"), "holds no weight_map"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], object], reason: str, folder: Path) -> None:
    damage(folder)

    with pytest.raises(EngineError, match=reason):
        read_tensors(folder, is_whole=True)


def test_shards_that_are_still_to_come_are_not_missing(folder: Path) -> None:
    (folder / SHARDS[0]).unlink()

    assert [tensor.name for tensor in read_tensors(folder, is_whole=False)] == ["1.weight"]


@pytest.mark.parametrize("name", ["llama.Q4.gguf", "pytorch_model.bin", "consolidated.00.pth"])
def test_other_formats_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()

    with pytest.raises(EngineError, match=f"its weights are in {name}"):
        read_tensors(tmp_path, is_whole=True)


def stored(folder: Path, name: str, dtype: str, *shape: int) -> None:
    tensors = {name: np.zeros(shape, dtype)}
    save_file(tensors, folder / "model.safetensors")
    check_stored(read_tensors(folder, is_whole=True), is_quantised=False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("q.weight", "int8"), ("q.qweight", "int32"), ("experts.gate_up_proj", "uint8")],
)
def test_numbers_that_nothing_explains_are_refused(name: str, dtype: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="its config doesn't say how"):
        stored(tmp_path, name, dtype, 4, 4)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("attn.bias", "uint8"), ("attn.mask", "bool"), ("position_ids", "int64"), ("b", "float16")],
)
def test_masks_and_positions_mean_themselves(name: str, dtype: str, tmp_path: Path) -> None:
    stored(tmp_path, name, dtype, 4, 4)

    assert read_tensors(tmp_path, is_whole=True)[0].name == name


def test_a_config_that_explains_what_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="its files hold none so"):
        check_stored(read_tensors(folder, is_whole=True), is_quantised=True)
