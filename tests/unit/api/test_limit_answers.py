"""What clients are told of rate limits."""

from __future__ import annotations

import orjson
import pytest

from api.errors import error_response
from api.limits.answers import duration, final_refusal, rate_headers, refusal
from tasks.limits import Answer, Dimension, Meter, Standing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0000001, "1ms"),
        (0.12, "120ms"),
        (0.9991, "1s"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.5714281, "8.572s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (61.25, "1m1.25s"),
        (360, "6m0s"),
    ],
)
def test_durations_are_written_as_openai_does_and_rounded_up(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_headers_tell_of_the_limits_there_are() -> None:
    both = rate_headers(Standing(Meter(60, 1.0), Meter(1_000, 250.0)))

    assert both == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "750",
        "x-ratelimit-reset-tokens": "15s",
    }
    assert set(rate_headers(Standing(None, Meter(1_000, 0.0)))) == {
        name for name in both if name.endswith("tokens")
    }
    assert rate_headers(None) == {}


def test_a_refusal_of_requests_says_when_to_come_again() -> None:
    answer = Answer(Standing(Meter(60, 60.0), Meter(1_000, 0.0)), Dimension.REQUESTS)

    response = error_response(refusal(answer, 5))

    error = orjson.loads(response.body)["error"]
    assert response.status_code == 429
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert "60 requests a minute" in error["message"]
    assert "in 1s" in error["message"]
    assert response.headers["retry-after"] == "1"
    assert response.headers["retry-after-ms"] == "1000"
    assert response.headers["x-should-retry"] == "true"
    assert response.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_refusal_of_tokens_says_how_many_were_asked_for_and_are_left() -> None:
    answer = Answer(Standing(None, Meter(6_000, 5_880.0)), Dimension.TOKENS)

    response = error_response(refusal(answer, 1_500))

    error = orjson.loads(response.body)["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    for word in ("6,000 tokens", "120 are left", "1,500", "13.8s"):
        assert word in error["message"]
    assert response.headers["retry-after"] == "14"
    assert response.headers["retry-after-ms"] == "13800"


def test_stock_clients_come_back_after_the_longest_wait_there_is() -> None:
    answer = Answer(Standing(None, Meter(100, 100.0)), Dimension.TOKENS)

    assert refusal(answer, 100).headers["Retry-After"] == "60"  # they wait for up to 120 s


def test_a_request_that_can_never_pass_is_not_to_be_tried_again() -> None:
    response = error_response(final_refusal(Standing(None, Meter(6_000, 0.0)), 7_000))

    error = orjson.loads(response.body)["error"]
    assert response.status_code == 429
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    for word in ("7,000", "6,000", "never"):
        assert word in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
