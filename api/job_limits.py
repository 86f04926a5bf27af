"""What a request may ask of a model and of a key, checked before anything is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from api.generation import Generation
from store.catalog import ModelEntry
from store.tenants import ApiKey
from tasks.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelUnavailable,
    PermissionDenied,
)
from tasks.jobs import Dialect, OnDisconnect
from tasks.queues import ServiceTier

# Of several prompts in one request. One alone is bounded by its model.
MAX_TOKENS_OF_PROMPTS = 131_072

# Their clients wait for the answer; those of jobs, and in the background, come back for it.
_WAITING_DIALECTS = frozenset({Dialect.CHAT, Dialect.COMPLETION, Dialect.RESPONSE})


def tier_for(key: ApiKey, asked: str) -> ServiceTier:
    """The tier a job runs in. Raises PermissionDenied for one beyond the tenant's plan."""
    if asked == "auto":
        return ServiceTier(key.default_tier)
    if asked not in key.tiers:
        message = f"The service tier '{asked}' is not part of your plan."
        raise PermissionDenied(message, param="service_tier")
    return ServiceTier(asked)


def policy_for(key: ApiKey, generation: Generation) -> OnDisconnect:
    """What becomes of a job whose client leaves: by the request, the key, or the default."""
    if generation.on_disconnect is not None:
        return generation.on_disconnect
    if generation.is_background or generation.dialect not in _WAITING_DIALECTS:
        return OnDisconnect.CONTINUE
    return OnDisconnect(key.on_disconnect or OnDisconnect.CANCEL)


def check_is_served(model: ModelEntry) -> None:
    """Raise ModelUnavailable for a model that every worker of its pool has refused."""
    if model.refusal is not None:
        message = f"The model '{model.name}' can't be served: {model.refusal}"
        raise ModelUnavailable(message, param="model")


def check_token_ids(sampling: Mapping[str, Any], vocab_size: int) -> None:
    """Raise InvalidRequest for a token the model doesn't have."""
    named = {
        "logit_bias": map(int, sampling.get("logit_bias", ())),
        "stop_token_ids": sampling.get("stop_token_ids", ()),
    }
    for param, token_ids in named.items():
        if any(token_id >= vocab_size for token_id in token_ids):
            message = f"'{param}' names a token beyond the vocabulary of {vocab_size}."
            raise InvalidRequest(message, param=param)


def output_limit(generation: Generation, model: ModelEntry, prompt_lengths: Sequence[int]) -> int:
    """The most tokens a choice may have, whichever prompt it continues. Raises
    ContextLengthExceeded, InvalidRequest.
    """
    _check_sum(prompt_lengths, model, generation.prompt_param)
    input_tokens = max(prompt_lengths)
    room = model.context_length - input_tokens
    asked = generation.token_limit.value
    if asked is not None and asked > model.max_output_tokens:
        message = f"This model produces at most {model.max_output_tokens} tokens."
        raise InvalidRequest(message, param=generation.token_limit.param)
    limit = min(model.max_output_tokens, room) if asked is None else asked
    if limit > room or (room < 1 and asked != 0):
        raise ContextLengthExceeded(
            # Clients know an overflow by the first words (tests/unit/api/test_words_of_errors.py).
            f"This model's maximum context length is {model.context_length} tokens; your prompt has"
            f" {input_tokens}" + (f", and you asked for {asked} more." if asked else "."),
            param=generation.prompt_param,
        )
    if generation.sampling.get("min_tokens", 0) > limit:
        message = f"'min_tokens' is more than the {limit} tokens to produce at most."
        raise InvalidRequest(message, param="min_tokens")
    return limit


def _check_sum(prompt_lengths: Sequence[int], model: ModelEntry, param: str) -> None:
    most = max(model.context_length, MAX_TOKENS_OF_PROMPTS)
    if (num_tokens := sum(prompt_lengths)) > most:
        message = f"The prompts of a request may have {most} tokens together; these have"
        raise InvalidRequest(f"{message} {num_tokens}.", param=param)
