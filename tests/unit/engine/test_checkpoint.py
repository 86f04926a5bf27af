"""What a model's files tell before a weight is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workers.inference.engine.checkpoint import check_checkpoint, check_vocabulary
from workers.inference.engine.errors import EngineError, reason_of

FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
EIGHT_BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def check(config: dict[str, Any], dtype: str = "auto", **files: object) -> str:
    contents = {"config.json": config} | {f"{name}.json": file for name, file in files.items()}
    found = {name: json.dumps(content).encode() for name, content in contents.items()}
    return check_checkpoint(found.get, dtype)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt NVFP4"),
        ({"bits": 4}, "an unknown method"),
        ("strange", "an unknown method"),
    ],
)
def test_a_method_that_needs_other_kernels_is_named(settings: object, name: str) -> None:
    for config in (
        {"quantization_config": settings},
        {"text_config": {"compression_config": settings}},
    ):
        with pytest.raises(EngineError, match=f"quantised by {name}"):
            check(config)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"hf_quant_config": {"quantization": {"quant_algo": "FP8"}}}, "by modelopt FP8"),
        ({"quantize_config": {"bits": 4, "group_size": 128}}, "by gptq"),
        ({"quant_config": {"w_bit": 4}}, "by awq"),
        ({"adapter_config": {"peft_type": "LORA"}}, "it is an adapter"),
    ],
)
def test_files_beside_the_config_count_too(files: dict[str, Any], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        check({}, **files)


@pytest.mark.parametrize(
    ("config", "dtype", "loaded"),
    [
        ({}, "auto", "auto"),
        ({}, "int8", "int8"),
        ({"quantization_config": None}, "bf16", "bf16"),
        ({"quantization_config": FOUR_BITS}, "auto", "nf4"),
        ({"quantization_config": FOUR_BITS}, "nf4", "nf4"),
        ({"quantization_config": EIGHT_BITS}, "auto", "int8"),
    ],
)
def test_what_can_be_loaded_keeps_its_dtype(
    config: dict[str, Any], dtype: str, loaded: str
) -> None:
    assert check(config, dtype) == loaded


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "int8"])
def test_a_dtype_that_contradicts_the_files_is_refused(dtype: str) -> None:
    with pytest.raises(EngineError, match=f"stored as nf4, which can't be loaded as {dtype}"):
        check({"quantization_config": FOUR_BITS}, dtype)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["BertForMaskedLM"]},
        {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
    ],
)
def test_a_model_of_another_task_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        check(config)


def test_a_config_that_is_no_json_is_refused() -> None:
    with pytest.raises(EngineError, match="is not JSON"):
        check_checkpoint({"config.json": b"{"}.get, "auto")


def test_a_config_of_any_depth_is_read() -> None:
    config: dict[str, Any] = {"auto_map": "x"}
    for _ in range(300):
        config = {"inner": [config]}

    with pytest.raises(EngineError, match="auto_map"):
        check(config)


@pytest.mark.parametrize("ends", ["x", ["x", None], 1.5, True, {"a": 1}])
def test_ends_that_are_no_tokens_are_refused(ends: object) -> None:
    with pytest.raises(EngineError, match=r"eos_token_id of generation_config\.json"):
        check({}, generation_config={"eos_token_id": ends})


@pytest.mark.parametrize("ends", [None, 0, 7, [1, 2], []])
def test_ends_that_are_tokens_are_taken(ends: object) -> None:
    assert check({"eos_token_id": ends}, generation_config={"eos_token_id": ends}) == "auto"


@pytest.mark.parametrize("vocabulary", [{"a": 0, "b": 9}, [["a", 0.0]] * 10])
def test_a_tokenizer_of_a_larger_model_is_refused(vocabulary: object) -> None:
    tokenizer = json.dumps({"model": {"vocab": vocabulary}, "added_tokens": [{"id": 99}]})
    files = {"tokenizer.json": tokenizer.encode(), "config.json": b'{"vocab_size": 9}'}

    check_vocabulary(files.get, 10)
    with pytest.raises(EngineError, match="knows token 9, the model only 9 tokens"):
        check_vocabulary(files.get)


def test_a_reason_is_one_short_line_without_folders_of_the_machine() -> None:
    error = EngineError("x", "can't read\n /srv/models/llama/a.bin of a/b at https://h/x")

    assert reason_of(error) == "can't read a.bin of a/b at https://h/x"
    assert len(reason_of(EngineError("x", "long " * 200))) == 300
