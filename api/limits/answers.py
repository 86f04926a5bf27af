"""How answers tell of rate limits: OpenAI's headers, and what a refused client is to do. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tasks.errors import RateLimitExceeded, TokenLimitExceeded, TokenLimitTooLow
from tasks.limits import Answer, Dimension, Meter, Standing


def rate_headers(standing: Standing | None) -> dict[str, str]:
    """`x-ratelimit-*` of the limits there are."""
    if standing is None:
        return {}
    headers = {}
    for dimension, meter in _meters(standing):
        headers[f"x-ratelimit-limit-{dimension}"] = str(meter.limit)
        headers[f"x-ratelimit-remaining-{dimension}"] = str(meter.remaining)
        headers[f"x-ratelimit-reset-{dimension}"] = duration(meter.reset_s)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`. Rounded up, so that who waits waits enough."""
    ms = _whole_ms(seconds)
    if 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    return f"{minutes}m{ms / 1_000:g}s" if minutes else f"{ms / 1_000:g}s"


def refusal(answer: Answer, num_tokens: int) -> RateLimitExceeded:
    """The error of a request that is to come again later."""
    requests, tokens = answer.standing.requests, answer.standing.tokens
    error: RateLimitExceeded
    if answer.refused_by is Dimension.TOKENS:
        assert tokens is not None
        wait_s = tokens.wait_s(num_tokens)
        error = TokenLimitExceeded(_too_many_tokens(tokens, num_tokens, wait_s))
    else:
        assert requests is not None
        wait_s = requests.wait_s(1)
        error = RateLimitExceeded(_too_many_requests(requests, wait_s))
    error.headers = rate_headers(answer.standing) | _retry_headers(wait_s)
    return error


def unpaid_refusal(meter: Meter, what: str) -> RateLimitExceeded:
    """The error of one that asks for too many things that no credit pays for."""
    wait_s = meter.wait_s(1)
    error = RateLimitExceeded(
        f"Rate limit reached: you may make {meter.limit:,} {what} an hour, and none is left now."
        f" Try again in {duration(wait_s)}."
    )
    error.headers = _retry_headers(wait_s)
    return error


def final_refusal(standing: Standing, num_tokens: int) -> TokenLimitTooLow:
    """The error of a request whose tokens alone are more than the limit."""
    assert standing.tokens is not None
    error = TokenLimitTooLow(_too_large(standing.tokens, num_tokens))
    error.headers = rate_headers(standing)
    return error


def _meters(standing: Standing) -> Iterator[tuple[Dimension, Meter]]:
    pairs = zip(Dimension, (standing.requests, standing.tokens), strict=True)
    yield from ((dimension, meter) for dimension, meter in pairs if meter is not None)


def _retry_headers(wait_s: float) -> dict[str, str]:
    """Stock clients read the first that they know, and come back only within 120 s."""
    ms = max(1, _whole_ms(wait_s))
    return {
        "retry-after-ms": str(ms),
        "Retry-After": str(math.ceil(ms / 1_000)),
        "x-should-retry": "true",
    }


def _whole_ms(seconds: float) -> int:
    # Less than a nanosecond above a whole one is dust of the sums.
    return math.ceil(round(seconds * 1_000, 6))


def _too_many_requests(meter: Meter, wait_s: float) -> str:
    return (
        f"Rate limit reached: you have {meter.limit:,} requests a minute, and none is left now."
        f" Try again in {duration(wait_s)}."
    )


def _too_many_tokens(meter: Meter, num_tokens: int, wait_s: float) -> str:
    return (
        f"Rate limit reached: you have {meter.limit:,} tokens a minute, and {meter.remaining:,} are"
        f" left now. This request asks for {num_tokens:,}, input and the most it may produce."
        f" Try again in {duration(wait_s)}."
    )


def _too_large(meter: Meter, num_tokens: int) -> str:
    return (
        f"This request asks for {num_tokens:,} tokens, input and the most it may produce. You have"
        f" {meter.limit:,} a minute, so it can never pass: ask for less output or send less input."
    )
