"""What a model's folder says of itself, judged before a weight is read.

Without torch, so that the catalog asks the same questions before any worker does. What can be seen
here is refused in one line that names no file of this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from workers.inference.engine.errors import EngineError

ReadFile = Callable[[str], bytes | None]  # content of a file of the model, None if it has none

_BITSANDBYTES = "bitsandbytes"
# Where tools write how they quantised a model: keys of config.json at any depth, or files beside
# it, whose names tell the tool.
_QUANTISATION_KEYS = frozenset({"quantization_config", "compression_config"})
_QUANTISATION_FILES = {
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}
_ADAPTER = "adapter_config.json"
_WITH_ENDS = ("config.json", "generation_config.json")  # which tokens end a text
# Classes of transformers that end in logits of the next token, and names of those that don't.
_GENERATES = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration|ForImageTextToText)$")
_OTHER_TASK = re.compile(r"For[A-Z]\w*$")


def check_checkpoint(read: ReadFile, dtype: str) -> str:
    """The dtype to load a model in: its own, where its weights are stored quantised.

    Raises EngineError for a model that can't be served as it is.
    """
    if read(_ADAPTER) is not None:
        raise _refusal("it is an adapter, not a whole model: merge it into its base model first")
    config = _parse("config.json", read("config.json"))
    check_config(config)
    _check_task(config)
    for name in _WITH_ENDS:
        _check_ends(name, _parse(name, read(name)))
    for name, tool in _QUANTISATION_FILES.items():
        _refuse_method(_parse(name, read(name)), tool)
    stored = _stored_dtype(config)
    if stored is None or dtype in ("auto", stored):
        return stored or dtype
    raise _refusal(f"its weights are stored as {stored}, which can't be loaded as {dtype}")


def check_vocabulary(read: ReadFile, vocab_size: int | None = None) -> None:
    """Refuse a tokenizer that makes tokens the model doesn't have: it is another model's.

    `vocab_size`: the model's own; without it what config.json says counts. Added tokens may lie
    beyond it, as some models have them for pictures that they don't read.
    """
    if vocab_size is None:
        vocab_size = _stated_vocabulary(_parse("config.json", read("config.json")))
    model = _parse("tokenizer.json", read("tokenizer.json")).get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    ids = vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary or ()))
    largest = max((token_id for token_id in ids if isinstance(token_id, int)), default=-1)
    if vocab_size is not None and largest >= vocab_size:
        raise _refusal(f"its tokenizer knows token {largest}, the model only {vocab_size} tokens")


def check_config(config: object) -> None:
    """Refuse a config.json that names code to run; `config` is the parsed file."""
    for key, _ in _items(config):
        if key == "auto_map" or "_implementation" in key:
            raise _refusal(f"the model's config has the key {key}, which could name code to run")


def _check_task(config: Mapping[str, Any]) -> None:
    """Refuse what doesn't continue a text: classifiers, encoders, encoders with a decoder."""
    if config.get("is_encoder_decoder") is True:
        raise _refusal("it has an encoder and a decoder; only models of one part are served")
    names = config.get("architectures")
    known = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    if known and not any(map(_GENERATES.search, known)) and any(map(_OTHER_TASK.search, known)):
        raise _refusal(f"a {known[0]} does not generate text")


def _check_ends(name: str, document: Mapping[str, Any]) -> None:
    """Refuse ends that are no tokens: texts would go on to their limit."""
    ends = document.get("eos_token_id")
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends or 0])):
        raise _refusal(f"the eos_token_id of {name} is no token's number")


def _stated_vocabulary(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    parts = (text, config) if isinstance(text, Mapping) else (config,)
    sizes = [part["vocab_size"] for part in parts if type(part.get("vocab_size")) is int]
    return sizes[0] if sizes else None


def _stored_dtype(config: Mapping[str, Any]) -> str | None:
    """How the weights are stored, if they are quantised in the one way that can be loaded."""
    own = config.get("quantization_config")
    for key, value in _items(config):
        if key in _QUANTISATION_KEYS and value and not (value is own and _is_bitsandbytes(value)):
            _refuse_method(value, "an unknown method")
    if not own:
        return None
    return "nf4" if own.get("load_in_4bit") or own.get("_load_in_4bit") else "int8"


def _is_bitsandbytes(settings: object) -> bool:
    if not isinstance(settings, Mapping):
        return False
    is_named = settings.get("quant_method") == _BITSANDBYTES
    return is_named or ("quant_method" not in settings and _says_bits(settings))


def _says_bits(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("load_in_4bit") or settings.get("load_in_8bit"))


def _refuse_method(settings: object, tool: str) -> None:
    """Refuse a method that would need kernels of its own: without them weights are noise."""
    if not settings or (method := _method(settings, tool)) is None:
        return
    message = f"its weights are quantised by {method}, which is not supported"
    raise _refusal(f"{message}: use the model as it was before, or one quantised by bitsandbytes")


def _method(settings: object, tool: str) -> str | None:
    """What a tool calls its method; None where its file says that nothing is quantised."""
    if not isinstance(settings, Mapping):
        return tool
    inner = settings.get("quantization")  # modelopt's own file
    if isinstance(inner, Mapping):
        return f"{tool} {_printable(inner['quant_algo'])}" if inner.get("quant_algo") else None
    names = [settings.get(key) for key in ("quant_method", "quant_algo", "format")]
    return _printable(" ".join(str(name) for name in names if name)) or tool


def _printable(text: object) -> str:
    return " ".join(re.sub(r"[^\w.+-]+", " ", str(text))[:60].split())


def _items(config: object) -> Iterator[tuple[str, object]]:
    """Keys and values at any depth, however deep."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield from ((str(key), member) for key, member in value.items())
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _parse(name: str, content: bytes | None) -> Mapping[str, Any]:
    """A JSON object; an empty one for a file that isn't there."""
    if content is None:
        return {}
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineError("model_load_failed", f"{name} is not JSON: {error}") from error
    if not isinstance(document, Mapping):
        raise EngineError("model_load_failed", f"{name} is not a JSON object")
    return document


def _refusal(message: str) -> EngineError:
    return EngineError("model_unsupported", message)
