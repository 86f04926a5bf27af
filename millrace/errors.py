"""What a call may raise.

MillraceError
├── APIConnectionError            no answer: refused, cut off, too slow
└── APIError                      the server said no
    ├── BadRequestError           400, 410, 413
    ├── AuthenticationError       401
    ├── PermissionDeniedError     403
    ├── NotFoundError             404
    ├── RangeNotSatisfiableError  416
    ├── IdempotencyKeyReusedError 422
    ├── RateLimitError            429
    │   └── InsufficientQuotaError    no retry helps
    └── ServerError               5xx
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MillraceError(Exception):
    """Base of everything this package raises."""


class APIConnectionError(MillraceError):
    """The server could not be reached, or the connection broke before it had answered."""


class APIError(MillraceError):
    """The server refused. `code` is the stable name of the reason."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id


class BadRequestError(APIError):
    """The request can't be served as sent."""


class AuthenticationError(APIError):
    """The API key is missing, wrong, expired or revoked."""


class PermissionDeniedError(APIError):
    """The API key may not do that."""


class NotFoundError(APIError):
    """No such job or model."""


class RangeNotSatisfiableError(APIError):
    """The file ends before the bytes that were asked for."""


class IdempotencyKeyReusedError(APIError):
    """The idempotency key belongs to another request."""


class RateLimitError(APIError):
    """Too many requests; later it works."""


class InsufficientQuotaError(RateLimitError):
    """The credit doesn't cover the request."""


class ServerError(APIError):
    """The server failed or is overloaded."""


_BY_STATUS: Mapping[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    410: BadRequestError,
    413: BadRequestError,
    416: RangeNotSatisfiableError,
    422: IdempotencyKeyReusedError,
    429: RateLimitError,
}


def error_from(status: int, body: Any, request_id: str | None) -> APIError:
    """The error for an answer; `body` is its parsed JSON, if it is any."""
    error = body.get("error") if isinstance(body, dict) else None
    fields = error if isinstance(error, dict) else {}
    code = fields.get("code")
    cls = _BY_STATUS.get(status, ServerError if status >= 500 else APIError)
    if code == "insufficient_quota":
        cls = InsufficientQuotaError
    return cls(
        fields.get("message") or f"The server answered with status {status}.",
        status=status,
        code=code,
        param=fields.get("param"),
        request_id=request_id,
    )
