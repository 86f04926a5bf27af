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
    "max_tokens": (0, math.inf),
    "n": (1, 128),
}
_MAX_LOGIT_BIAS = 100.0
_MAX_LOGPROBS = 20


def check_request(request: EngineRequest, model: ModelInfo) -> None:
    """Raise EngineError if `model` can't serve the request."""
    _check_sampling(request.sampling, model.vocab_size)
    _check_prompt(request, model)
    _check_generated(request, model)


def check_fits(request: EngineRequest, model: ModelInfo, *, num_pages: int, page_size: int) -> None:
    """Raise EngineError if one choice, grown to its full length, needs more than all pages.

    What passes can always end, by itself if need be.
    """
    num_prompt, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    num_tokens = min(num_prompt + max_tokens, model.context_length)
    num_needed = -(-num_tokens // page_size)
    if num_needed > num_pages:
        message = (
            f"{num_prompt} prompt tokens and up to {num_tokens - num_prompt} generated ones take "
            f"{num_needed} pages of {page_size} tokens; the KV cache has {num_pages}"
        )
        raise EngineError("context_length_exceeded", message)


def _check_prompt(request: EngineRequest, model: ModelInfo) -> None:
    if not request.prompt_token_ids:
        raise EngineError("invalid_prompt", "the prompt is empty")
    if not _are_in_vocab(request.prompt_token_ids, model.vocab_size):
        raise EngineError("invalid_prompt", "a prompt token id is outside the vocabulary")
    num_prompt = len(request.prompt_token_ids)
    if num_prompt + min(1, request.sampling.max_tokens) > model.context_length:
        message = (
            f"This model's maximum context length is {model.context_length} tokens; {num_prompt}"
            " leave no room"
        )
        raise EngineError("context_length_exceeded", message)


def _check_generated(request: EngineRequest, model: ModelInfo) -> None:
    _require(0 <= request.num_scored <= len(request.prompt_token_ids), "num_scored is out of range")
    generated, n = request.generated_token_ids, request.sampling.n
    if len(generated) not in (0, n):
        message = f"there are generated tokens of {len(generated)} choices, not of {n}"
        raise EngineError("invalid_request", message)
    num_prompt = len(request.prompt_token_ids)
    for token_ids in generated:
        if not _are_in_vocab(token_ids, model.vocab_size):
            raise EngineError("invalid_prompt", "a generated token id is outside the vocabulary")
        # A continuation may fill the context to the last token: it then ends with LENGTH.
        if num_prompt + len(token_ids) > model.context_length:
            message = f"{num_prompt} + {len(token_ids)} tokens exceed {model.context_length}"
            raise EngineError("context_length_exceeded", message)


def _check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
    for name, (low, high) in _RANGES.items():
        _require(low <= getattr(sampling, name) <= high, f"{name} is out of range")
    _require(sampling.min_tokens <= sampling.max_tokens, "min_tokens is above max_tokens")
    for name in ("logprobs", "prompt_logprobs"):
        limit = getattr(sampling, name) or 0
        _require(0 <= limit <= _MAX_LOGPROBS, f"{name} is out of range")
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
