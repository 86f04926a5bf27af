"""What submit refuses, and with which code. Pure; raises EngineError, none of them retryable."""

from __future__ import annotations

import math
from collections.abc import Iterable

from workers.inference.engine.errors import EngineError
from workers.inference.engine.protocol import EngineRequest, ModelInfo, SamplingParams

# Inclusive ranges. NaN lies in none of them.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 1e4),
    "top_p": (math.ulp(0.0), 1.0),
    "top_k": (0, math.inf),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (1e-3, 1e3),
    "min_tokens": (0, math.inf),
    "max_tokens": (1, math.inf),
}
_MAX_LOGIT_BIAS = 100.0


def check_request(request: EngineRequest, model: ModelInfo) -> None:
    """Raise EngineError if `model` can't serve the request."""
    _check_tokens(request, model)
    _check_sampling(request.sampling, model.vocab_size)
    if request.grammar is not None:
        raise EngineError("unsupported", "this engine does not support grammars")


def _check_tokens(request: EngineRequest, model: ModelInfo) -> None:
    if not request.prompt_token_ids:
        raise EngineError("invalid_prompt", "the prompt is empty")
    if not _are_in_vocab(request.prompt_token_ids, model.vocab_size):
        raise EngineError("invalid_prompt", "a prompt token id is outside the vocabulary")
    if not _are_in_vocab(request.generated_token_ids, model.vocab_size):
        raise EngineError("invalid_prompt", "a generated token id is outside the vocabulary")
    num_prompt, num_generated = len(request.prompt_token_ids), len(request.generated_token_ids)
    # A continuation may fill the context to the last token: it then ends with LENGTH.
    is_too_long = num_prompt + num_generated > model.context_length
    if is_too_long or num_prompt >= model.context_length:
        message = f"{num_prompt} + {num_generated} tokens exceed {model.context_length}"
        raise EngineError("context_length_exceeded", message)


def _check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    for name, (low, high) in _RANGES.items():
        _require(low <= getattr(sampling, name) <= high, f"{name} is out of range")
    _require(sampling.min_tokens <= sampling.max_tokens, "min_tokens is above max_tokens")
    _require(all(sampling.stop), "a stop string is empty")
    _require(_are_in_vocab(sampling.stop_token_ids, vocab_size), "stop_token_ids is out of range")
    _require(_are_in_vocab(sampling.logit_bias, vocab_size), "a logit_bias token is out of range")
    are_small = all(abs(bias) <= _MAX_LOGIT_BIAS for bias in sampling.logit_bias.values())
    _require(are_small, "a logit_bias value is out of range")


def _require(is_met: bool, message: str) -> None:
    if not is_met:
        raise EngineError("invalid_request", message)


def _are_in_vocab(token_ids: Iterable[int], vocab_size: int) -> bool:
    return all(0 <= token_id < vocab_size for token_id in token_ids)
