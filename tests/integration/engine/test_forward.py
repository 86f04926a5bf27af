"""Every way to compute a step against the model's own forward pass, in float32."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_models import (
    ARCHITECTURES,
    NATIVE_ARCHITECTURES,
    OTHER_ARCHITECTURES,
    save_tiny,
)
from workers.inference.engine.config import Dtype, ModelSpec
from workers.inference.engine.forward import Forward
from workers.inference.engine.kv_cache import KVCache
from workers.inference.engine.model import LoadedModel, load_model
from workers.inference.engine.native import build
from workers.inference.engine.native.forward import NativeForward, read_weights
from workers.inference.engine.native.weights import UnsupportedModelError
from workers.inference.engine.proof import Proof
from workers.inference.engine.scheduler import Batch, Chunk
from workers.inference.engine.torch_forward import TorchForward

CPU = torch.device("cpu")
TOKENS = torch.randint(1, 256, (70,), generator=torch.Generator().manual_seed(3)).tolist()
NATIVE = [("native", name) for name in NATIVE_ARCHITECTURES]
PATHS = NATIVE + [("torch", name) for name in ARCHITECTURES]


@dataclass
class Tokens:
    """As much of a request as a forward pass reads."""

    token_ids: list[int]
    pages: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def chunk(request: Tokens, start: int, num_tokens: int) -> Chunk:
    return Chunk(request, start, num_tokens)  # type: ignore[arg-type]


def load(folder: Path, dtype: Dtype = "fp32") -> LoadedModel:
    return load_model(
        ModelSpec(name="tiny", path=str(folder), dtype=dtype), CPU, is_hub_allowed=False
    )


def forward(kind: str, folder: Path) -> Forward:
    loaded = load(folder)
    cache = KVCache(loaded.kv_shape, num_pages=32, device=CPU)
    if kind == "torch":
        return TorchForward(loaded.model, cache)
    weights = read_weights(loaded, Proof(loaded))
    return NativeForward(weights, cache)


@torch.inference_mode()
def own_logits(folder: Path, token_ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits


@pytest.mark.parametrize(("kind", "architecture"), PATHS)
def test_logits_are_the_models_own_through_chunks_and_decodes_on_scattered_pages(
    kind: str, architecture: str, tmp_path: Path
) -> None:
    folder = save_tiny(architecture, tmp_path)
    expected = own_logits(folder, TOKENS)
    under_test = forward(kind, folder)
    one = Tokens(TOKENS[:40], [7, 3, 9, 1, 20])
    other = Tokens([*TOKENS[5:30], TOKENS[0]], [2, 4])
    under_test.run(Batch((chunk(one, 0, 13), chunk(other, 0, 25))))
    under_test.run(Batch((chunk(other, 25, 1), chunk(one, 13, 27)), num_decodes=1))
    for position in range(40, len(TOKENS)):
        one.token_ids.append(TOKENS[position])
        batch = Batch((chunk(one, position, 1), chunk(other, 25, 1)), num_decodes=2)
        found = under_test.run(batch)
        torch.testing.assert_close(found[0], expected[position], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("architecture", OTHER_ARCHITECTURES)
def test_the_compiled_step_refuses_what_it_cannot_compute(
    architecture: str, tmp_path: Path
) -> None:
    loaded = load(save_tiny(architecture, tmp_path))
    with pytest.raises(UnsupportedModelError):
        read_weights(loaded, Proof(loaded))


def test_the_compiled_step_refuses_a_model_whose_logits_it_does_not_reproduce(
    tmp_path: Path,
) -> None:
    loaded = load(save_tiny("llama", tmp_path))
    loaded.model.get_decoder().layers[1].self_attn.register_forward_hook(
        lambda module, inputs, output: (output[0] * 0.5, *output[1:])
    )
    with pytest.raises(UnsupportedModelError, match="logits differ"):
        read_weights(loaded, Proof(loaded))


def test_bf16_logits_stay_near_those_of_float32(tmp_path: Path) -> None:
    folder = save_tiny("qwen3", tmp_path)
    expected = own_logits(folder, TOKENS)
    loaded = load(folder, "bf16")
    weights = read_weights(loaded, Proof(loaded))
    cache = KVCache(loaded.kv_shape, num_pages=8, device=CPU)
    found = NativeForward(weights, cache).all_logits(TOKENS)
    assert (found - expected).norm() / expected.norm() < 0.05


def test_nan_left_in_a_page_by_one_request_never_reaches_the_next(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    loaded = load(folder)
    cache = KVCache(loaded.kv_shape, num_pages=4, device=CPU)
    weights = read_weights(loaded, Proof(loaded))
    under_test = NativeForward(weights, cache)
    cache.keys.fill_(float("nan"))
    cache.values.fill_(float("nan"))
    found = under_test.run(Batch((chunk(Tokens(TOKENS[:21], [2, 0]), 0, 21),)))
    torch.testing.assert_close(found[0], own_logits(folder, TOKENS[:21])[-1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("num_rows", [1, 2, 5, 12, 13, 16, 25, 40])
def test_every_number_of_rows_gives_the_same_logits(num_rows: int, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    loaded = load(folder)
    cache = KVCache(loaded.kv_shape, num_pages=4, device=CPU)
    weights = read_weights(loaded, Proof(loaded))
    found = NativeForward(weights, cache).all_logits(TOKENS[:num_rows])
    expected = own_logits(folder, TOKENS[:num_rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_compiled_step_is_the_same_to_the_last_bit_in_any_batch_and_any_chunks(
    dtype: Dtype, tmp_path: Path
) -> None:
    loaded = load(save_tiny("gemma3", tmp_path), dtype)
    cache = KVCache(loaded.kv_shape, num_pages=200, device=CPU)
    weights = read_weights(loaded, Proof(loaded))
    under_test = NativeForward(weights, cache)
    whole = under_test.all_logits(TOKENS)[-1].clone()
    others = [Tokens(TOKENS[i : i + 20 + i], [50 + 4 * i + p for p in range(4)]) for i in range(31)]
    under_test.run(Batch(tuple(chunk(r, 0, r.num_tokens - 1) for r in others)))
    one = Tokens(TOKENS, [9, 8, 7, 6, 5])
    under_test.run(Batch((chunk(one, 0, 33),)))
    under_test.run(Batch((chunk(others[0], 19, 1), chunk(one, 33, 36)), num_decodes=1))
    decodes = [chunk(r, r.num_tokens - 1, 1) for r in others]
    found = under_test.run(Batch((*decodes[:17], chunk(one, 69, 1), *decodes[17:]), num_decodes=32))
    assert torch.equal(found[17], whole)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match=r"apt install g\+\+"):
        build.built_library.__wrapped__()


def test_a_compiler_that_fails_is_named_with_its_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "g++ --no-such-flag")
    with pytest.raises(build.BuildError, match="no-such-flag"):
        build.built_library.__wrapped__()


def test_a_cache_folder_that_others_can_write_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "millrace" / "native"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match="written by others"):
        build.built_library.__wrapped__()
