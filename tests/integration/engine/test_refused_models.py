"""A model is served as transformers computes it, or refused in one line. Nothing in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM, LlamaForSequenceClassification

from benchmarks.architectures import save, try_folder
from tests.integration.engine.collector import Collector
from tests.support.tiny_models import save_tiny_llama
from workers.inference.engine.config import Dtype, EngineConfig, ModelSpec
from workers.inference.engine.millrace import MillraceEngine

Damage = Callable[[Path], None]


def refusal(folder: Path, dtype: Dtype = "auto") -> str | None:
    spec = ModelSpec(name="m", path=str(folder), dtype=dtype)
    engine = MillraceEngine(EngineConfig(models=(spec,), num_threads=1, use_native_step=False))
    engine.start(Collector())
    engine.shutdown()
    return engine.refused.get("m")


# Each was served with wrong tokens: positions, masks or windows that no page knows. The last can't
# even compute by itself as it is configured here.
@pytest.mark.parametrize(
    "kind", ["bloom", "codegen", "xglm", "diffllama", "doge", "qwen2_moe", "dbrx"]
)
def test_what_pages_compute_otherwise_is_refused(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)

    found = try_folder(tmp_path)

    assert found["result"] == "refused"
    assert "\n" not in found["reason"]
    assert str(tmp_path) not in found["reason"]


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "phi"])
def test_what_passes_is_equal_beyond_its_windows(kind: str, tmp_path: Path) -> None:
    save(kind, tmp_path)

    assert try_folder(tmp_path)["result"] == "equal"


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_rounding_excuses_no_wrong_formula(dtype: Dtype, tmp_path: Path) -> None:
    for kind in ("bloom", "phi"):
        save(kind, tmp_path / kind)

    assert "its logits differ from the model's own" in (refusal(tmp_path / "bloom", dtype) or "")
    assert refusal(tmp_path / "phi", dtype) is None


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_head(folder: Path) -> None:
    LlamaForCausalLM.from_pretrained(folder).model.save_pretrained(folder)


def classifier(folder: Path) -> None:
    LlamaForSequenceClassification.from_pretrained(folder).save_pretrained(folder)


def without_a_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))


def with_a_bias_too_many(folder: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    edit_tensors(folder, lambda tensors: tensors.update(bias))


def of_another_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=96)


def in_fp8_without_a_word(folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))


def not_a_number(folder: Path) -> None:
    edit_tensors(folder, lambda t: t["model.norm.weight"].fill_(torch.nan))


def one_token_is_not_a_number(folder: Path) -> None:
    edit_tensors(folder, lambda t: t["model.embed_tokens.weight"][5].fill_(torch.nan))


def with_a_norm_too_many(folder: Path) -> None:
    norm = {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}
    edit_tensors(folder, lambda tensors: tensors.update(norm))


def with_half_an_adapter(folder: Path) -> None:
    half = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}
    edit_tensors(folder, lambda tensors: tensors.update(half))


def with_a_layer_too_many(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)


def of_another_vocabulary(folder: Path) -> None:
    edit_config(folder, vocab_size=1000)


def with_a_larger_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 1000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def said_to_be_quantised(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_head, "lack lm_head.weight"),
        (classifier, "does not generate text"),
        (without_a_tensor, "lack model.layers.1.mlp.down_proj.weight"),
        (with_a_bias_too_many, "leaves no place"),
        (of_another_shape, ""),
        (in_fp8_without_a_word, "stored as F8_E4M3"),
        (not_a_number, "model.norm.weight holds what is no number"),
        (one_token_is_not_a_number, "model.embed_tokens.weight holds what is no number"),
        (with_a_norm_too_many, "leaves no place"),
        (with_half_an_adapter, "leaves no place"),
        (with_a_layer_too_many, "hold 9 tensors such as model.layers.1.input_layernorm.weight"),
        (of_another_vocabulary, "lm_head.weight in a shape that config.json denies"),
        (with_a_larger_tokenizer, "its tokenizer knows token 1000, the model only 310 tokens"),
        (said_to_be_quantised, "its files hold none so"),
        (cut_off, "model.safetensors is not whole"),
    ],
)
def test_files_that_are_not_the_whole_model_are_refused(
    damage: Damage, reason: str, tmp_path: Path
) -> None:
    save_tiny_llama(tmp_path)
    damage(tmp_path)

    found = refusal(tmp_path)

    assert found is not None
    assert reason in found
    assert str(tmp_path) not in found


def test_layers_that_predict_more_tokens_are_left_out(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path)
    edit_config(tmp_path, num_hidden_layers=1, num_nextn_predict_layers=1)

    assert refusal(tmp_path) is None


def test_the_revision_that_the_catalog_names_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    good, newest = "a" * 40, "b" * 40
    save_tiny_llama(repository / "snapshots" / good)
    without_a_tensor(save_tiny_llama(repository / "snapshots" / newest))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(newest)

    specs = tuple(
        ModelSpec(name=revision or "newest", path="owner/name", revision=revision)
        for revision in (good, None)
    )
    engine = MillraceEngine(EngineConfig(models=specs, num_threads=1, use_native_step=False))
    engine.start(Collector())
    engine.shutdown()

    assert (list(engine.models), list(engine.refused)) == ([good], ["newest"])


def test_a_model_that_bitsandbytes_quantised_is_loaded_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save_tiny_llama(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    quantised = LlamaForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, device_map={"": "cpu"}
    )
    quantised.save_pretrained(tmp_path)

    assert [refusal(tmp_path, "auto"), refusal(tmp_path, "nf4")] == [None, None]
    assert "stored as nf4, which can't be loaded as int8" in (refusal(tmp_path, "int8") or "")


def test_one_bad_model_does_not_keep_the_others_from_being_served(tmp_path: Path) -> None:
    good, bad = save_tiny_llama(tmp_path / "good"), save_tiny_llama(tmp_path / "bad")
    without_a_tensor(bad)
    specs = tuple(ModelSpec(name=path.name, path=str(path)) for path in (bad, good))
    engine = MillraceEngine(EngineConfig(models=specs, num_threads=1))

    engine.start(Collector())
    engine.shutdown()

    assert (list(engine.models), list(engine.refused)) == (["good"], ["bad"])
