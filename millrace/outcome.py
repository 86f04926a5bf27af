"""What to make of one try of a call. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import httpx

from millrace.errors import APIConnectionError, APIError, MillraceError, error_from
from millrace.retries import backoff, delay_after_answer

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


@dataclass(frozen=True)
class Retry:
    """Try again after so many seconds; `error` is what to raise when no tries are left."""

    delay_s: float
    error: MillraceError


def api_error(response: httpx.Response) -> APIError:
    """The error an answer stands for. Its body must have been read."""
    return error_from(
        response.status_code, _json(response.content), response.headers.get("x-request-id")
    )


def after_answer(attempt: int, response: httpx.Response) -> Retry | None:
    """None: it succeeded. Raises APIError where another try makes no sense."""
    if response.is_success:
        return None
    error = api_error(response)
    delay_s = delay_after_answer(attempt, response.status_code, response.headers)
    if delay_s is None:
        raise error
    return Retry(delay_s, error)


def after_failure(attempt: int, error: httpx.TransportError) -> Retry:
    """No answer came."""
    reason = _ERRNO.sub("", str(error)) or type(error).__name__
    url = error.request.url
    server = f"{url.scheme}://{url.netloc.decode('ascii')}"
    return Retry(backoff(attempt), APIConnectionError(f"No answer from {server}: {reason}"))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
