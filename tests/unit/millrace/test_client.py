"""The client against made-up answers; with the real API it is tested in integration."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

import millrace
from millrace import retries
from millrace.streams import MAX_FRUITLESS_TRIES, EventSession

JOB = {
    "id": "job_1", "object": "job", "status": "completed", "model": "m", "model_requested": "m",
    "service_tier": "default", "created_at": 1, "started_at": 2, "finished_at": 3,
    "deadline_at": 4, "attempt": 1, "queue": None,
    "output": [{"index": 0, "text": "hi", "finish_reason": "stop", "later": 1}],
    "usage": {"input_tokens": 1, "cached_tokens": 0, "output_tokens": 1}, "cost_micros": 5,
    "currency": "USD", "error": None, "incomplete_details": None, "metadata": {},
    "events_url": "/v1/jobs/job_1/events", "later": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)


def _client(handler: Callable[[httpx.Request], httpx.Response]) -> millrace.Client:
    return millrace.Client("http://test", "key", transport=httpx.MockTransport(handler))


def _error(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"error": {"message": "no", "type": "t", "param": "p", "code": code}}
    return httpx.Response(status, json=body, headers=headers)


def test_job_is_typed_and_unknown_fields_are_kept_aside() -> None:
    with _client(lambda request: httpx.Response(200, json=JOB)) as client:
        job = client.jobs.get("job_1")

    assert (job.text, job.is_terminal, job.raw["later"]) == ("hi", True, True)


def test_create_is_retried_with_the_same_idempotency_key() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["idempotency-key"])
        if len(seen) == 1:
            raise httpx.ReadError("cut off")
        return httpx.Response(503) if len(seen) == 2 else httpx.Response(202, json=JOB)

    with _client(handler) as client:
        client.jobs.create(model="m", prompt="p")

    assert len(seen) == 3
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("status", "code", "cls", "num_tries"),
    [
        (400, "invalid_request", millrace.BadRequestError, 1),
        (401, "invalid_api_key", millrace.AuthenticationError, 1),
        (403, "permission_denied", millrace.PermissionDeniedError, 1),
        (404, "job_not_found", millrace.NotFoundError, 1),
        (422, "idempotency_key_reused", millrace.IdempotencyKeyReusedError, 1),
        (429, "rate_limit_exceeded", millrace.RateLimitError, 3),
        (503, "service_unavailable", millrace.ServerError, 3),
    ],
)
def test_errors_are_typed_and_retried_where_it_helps(
    status: int, code: str, cls: type[millrace.APIError], num_tries: int
) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return _error(status, code, **{"x-request-id": "req_1"})

    with _client(handler) as client, pytest.raises(cls) as raised:
        client.models.list()

    error = raised.value
    assert (error.code, error.param, error.request_id) == (code, "p", "req_1")
    assert len(seen) == num_tries


def test_exhausted_credit_is_not_retried() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return _error(429, "insufficient_quota", **{"x-should-retry": "false"})

    with _client(handler) as client, pytest.raises(millrace.InsufficientQuotaError):
        client.jobs.create(model="m", prompt="p")

    assert len(seen) == 1


def test_unreachable_server_is_a_connection_error() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with _client(handler) as client, pytest.raises(millrace.APIConnectionError, match="refused"):
        client.models.list()


def test_retry_after_is_honoured_up_to_two_minutes() -> None:
    assert retries.delay_after_answer(0, 429, {"retry-after": "7"}) == 7
    assert retries.delay_after_answer(0, 429, {"retry-after": "121"}) is None
    assert retries.delay_after_answer(0, 503, {}) is not None
    assert retries.delay_after_answer(0, 400, {}) is None


def test_missing_key_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLRACE_API_KEY", raising=False)

    with pytest.raises(millrace.MillraceError, match="MILLRACE_API_KEY"):
        millrace.Client()


def test_events_resume_after_the_last_one_and_skip_repeats() -> None:
    asked: list[str | None] = []
    bodies = [
        b'id: 1\nretry: 1000\nevent: token\ndata: {"text":"a"}\n\n:\nid: 2\nevent: tok',
        b"",
        b'id: 1\nevent: token\ndata: {"text":"a"}\n\nid: 2\nevent: token\ndata: {"text":"b"}\n\n',
        b'id: 3\nevent: done\ndata: {"job":{}}\n\n',
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("last-event-id"))
        return httpx.Response(200, stream=httpx.ByteStream(bodies[len(asked) - 1]))

    with _client(handler) as client:
        events = list(client.jobs.events("job_1"))

    assert [(event.type, event.seq) for event in events] == [
        ("token", 1),
        ("token", 2),
        ("done", 3),
    ]
    assert "".join(event.text for event in events) == "ab"
    assert asked == [None, "1", "1", "2"]


def test_stream_that_never_says_anything_is_given_up() -> None:
    session = EventSession("job_1", 0)

    for _ in range(MAX_FRUITLESS_TRIES):
        session.delay_before_resuming()
    with pytest.raises(millrace.APIConnectionError):
        session.delay_before_resuming()


def test_line_separators_inside_text_do_not_end_a_line() -> None:
    session = EventSession("job_1", 0)

    events = list(session.feed('event: token\ndata: {"text":"a\u2028b"}\n\n'.encode()))

    assert events[0].text == "a\u2028b"


@pytest.mark.parametrize("name", ["", ".", "..", "../models", "a/b", "x?y#z"])
def test_id_that_is_none_never_names_another_path(name: str) -> None:
    paths: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return _error(404, "job_not_found")

    with _client(handler) as client, pytest.raises(millrace.NotFoundError):
        client.jobs.get(name)

    assert paths[0].startswith(b"/v1/jobs/")
    assert paths[0].count(b"/") == 3
    assert paths[0] != b"/v1/jobs/"


def test_model_names_may_hold_slashes() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/models/owner/Qwen3 0.6B"
        return _error(404, "model_not_found")

    with _client(handler) as client, pytest.raises(millrace.NotFoundError):
        client.models.get("owner/Qwen3 0.6B")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"hello": "world"}),
    ],
)
def test_another_server_is_told_apart(answer: httpx.Response) -> None:
    with (
        _client(lambda request: answer) as client,
        pytest.raises(millrace.MillraceError, match="http://test/v1/jobs/job_1 is not Millrace"),
    ):
        client.jobs.get("job_1")


def test_unreachable_server_is_named_with_the_reason() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused", request=request)

    with (
        _client(handler) as client,
        pytest.raises(millrace.APIConnectionError) as raised,
    ):
        client.jobs.get("job_1")

    assert str(raised.value) == "No answer from http://test: Connection refused"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "//x", "x"])
def test_url_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(millrace.MillraceError, match="http://"):
        millrace.Client(url, "key")


@pytest.mark.parametrize("key", ["schl\u00fcssel", "two\nlines", "tab\tbed"])
def test_key_that_fits_no_header_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(millrace.MillraceError) as raised:
        millrace.Client("http://test", key)

    assert key not in str(raised.value)
