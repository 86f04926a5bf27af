"""While a model loads, whoever watches sees that it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.integration.engine.collector import Collector
from tests.support.tiny_models import save_tiny_llama
from workers.inference.engine import engine as engine_module
from workers.inference.engine import millrace
from workers.inference.engine.config import EngineConfig, ModelSpec
from workers.inference.engine.millrace import MillraceEngine
from workers.inference.engine.model import load_model
from workers.inference.engine.native.build import built_library
from workers.inference.engine.protocol import Phase

CPU = torch.device("cpu")


def num_tensors(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return len(list(tensors.keys()))


def test_every_weight_is_told_of_and_no_bar_is_drawn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, shares = save_tiny_llama(tmp_path), list[float]()
    spec = ModelSpec(name="m", path=str(folder), dtype="fp32")
    capfd.readouterr()

    load_model(spec, CPU, is_hub_allowed=False, on_share=shares.append)

    assert len(shares) == num_tensors(folder)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert capfd.readouterr().err == ""


def test_counter_moves_with_every_weight_and_layer_but_few_lines_are_written(
    tmp_path: Path,
) -> None:
    folder = save_tiny_llama(tmp_path, num_layers=3)
    told: list[tuple[str, float]] = []
    config = EngineConfig(models=(ModelSpec(name="m", path=str(folder), dtype="fp32"),))
    engine = MillraceEngine(config, lambda *progress: told.append(progress))

    engine.start(Collector())
    engine.shutdown()

    assert engine.progress().counter >= num_tensors(folder) + 3
    assert told == [("m", 0.0), ("ready", 1.0)]


def test_a_long_load_is_told_of_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = save_tiny_llama(tmp_path), list[float]()
    config = EngineConfig(models=(ModelSpec(name="m", path=str(folder), dtype="fp32"),))
    monkeypatch.setattr(engine_module, "_REPORT_INTERVAL_S", -1.0)
    engine = MillraceEngine(config, lambda _, fraction: told.append(fraction))

    engine.start(Collector())
    engine.shutdown()

    assert len(told) > num_tensors(folder)
    assert told == sorted(told)


def test_two_models_each_take_their_part_of_the_way(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path)
    config = EngineConfig(
        models=tuple(ModelSpec(name=n, path=str(folder), dtype="fp32") for n in ("a", "b"))
    )
    told: list[tuple[str, float]] = []
    engine = MillraceEngine(config, lambda *progress: told.append(progress))

    engine.start(Collector())
    engine.shutdown()

    assert told == [("a", 0.0), ("b", 0.5), ("ready", 1.0)]


def test_compiling_is_a_phase_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, phases = save_tiny_llama(tmp_path), list[Phase]()
    config = EngineConfig(models=(ModelSpec(name="m", path=str(folder), dtype="fp32"),))
    engine = MillraceEngine(config, lambda *_: phases.append(engine.progress().phase))

    def compile_slowly() -> Path:
        phases.append(engine.progress().phase)
        return built_library()

    monkeypatch.setattr(millrace, "built_library", compile_slowly)
    engine.start(Collector())
    phases.append(engine.progress().phase)
    engine.shutdown()

    assert phases == [Phase.LOADING, Phase.COMPILING, Phase.LOADING, Phase.SERVING]
