"""Stock clients know some errors by words, codes or statuses: ours have them.

The left column names who looks for it; the patterns are what these clients look for.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from api.errors import error_object, error_response, status_of
from api.generation import Generation, TokenLimit
from api.job_limits import output_limit
from api.prompts.prompt import TextPrompt
from tasks import errors
from tasks.errors import ServiceError
from tasks.jobs import Dialect


def _overflow() -> ServiceError:
    """What a prompt gets that leaves no room."""
    model: Any = SimpleNamespace(context_length=4_096, max_output_tokens=4_096)
    generation = Generation(
        dialect=Dialect.CHAT,
        path="/v1/chat/completions",
        model="m",
        prompt=TextPrompt("x"),
        prompt_param="messages",
        sampling={},
        token_limit=TokenLimit(None, "max_tokens"),
    )
    with pytest.raises(errors.ContextLengthExceeded) as caught:
        output_limit(generation, model, [5_000])
    return caught.value


@pytest.mark.parametrize(
    ("client", "error", "status", "pattern"),
    [
        ("litellm", _overflow(), 400, r"(?i)this model's maximum context length is"),
        ("opencode", _overflow(), 400, r"(?i)maximum context length is \d+ tokens"),
        ("Cline", _overflow(), 400, r"(?i)\bmaximum\s*context\b"),
        ("LangChain", _overflow(), 400, r"context_length_exceeded"),
        ("litellm", errors.ModelNotFound(), 404, r"(?s)invalid_request_error.*model_not_found"),
        ("Continue", errors.ModelNotFound(), 404, r"does not exist"),
        ("litellm", errors.InvalidApiKey(), 401, r"Incorrect API key provided"),
        ("Codex", errors.InvalidApiKey(), 401, r"invalid_api_key"),
        ("litellm, Cline", errors.RateLimitExceeded(), 429, r"(?i)rate[\s_-]*limit"),
        ("litellm, Cline", errors.TokenLimitExceeded(), 429, r"(?i)rate[\s_-]*limit"),
        ("OpenAI", errors.InsufficientQuota(), 429, r"'code': 'insufficient_quota'"),
        ("openai-agents", errors.ServiceUnavailable(), 503, r""),
        ("all that retry", errors.InternalError(), 500, r"The server had an error"),
        ("OpenAI", errors.PreviousResponseNotFound(), 404, r"previous_response_not_found"),
        ("OpenAI", errors.IdempotencyKeyReused(), 422, r""),
    ],
)
def test_what_a_client_looks_for_is_there(
    client: str, error: ServiceError, status: int, pattern: str
) -> None:
    # As the openai packages put an error into words, in which others then search.
    words = f"Error code: {status} - {{'error': {error_object(error)}}}"

    assert status_of(error)[0] == status
    assert re.search(pattern, words), client


@pytest.mark.parametrize(
    "error", [errors.InvalidRequest(), errors.UnsupportedParameter(), _overflow()]
)
def test_what_no_retry_helps_is_not_taken_for_a_rate_limit(error: ServiceError) -> None:
    body = orjson.loads(error_response(error).body)

    assert not re.search(r"(?i)rate[\s_-]*limit|\b429\b", str(body))
