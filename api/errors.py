"""The one table from ServiceError to HTTP, in OpenAI's error shape. No other file knows a status.

Nothing of the request's body is ever echoed, but for the words of a schema or grammar at which its
compiler stumbled: prompts must not reach logs through error messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from psycopg import InterfaceError, OperationalError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from api.schemas.strict import MISTAKE, UNSUPPORTED
from tasks import errors
from tasks.errors import InternalError, InvalidRequest, ServiceError, UnsupportedParameter

log = structlog.get_logger(__name__)

_INVALID = "invalid_request_error"
_SERVER = "server_error"

# Class -> (status, type). A class that is not listed takes its parent's line.
STATUS: Mapping[type[ServiceError], tuple[int, str]] = {
    errors.InvalidRequest: (400, _INVALID),
    errors.InvalidApiKey: (401, _INVALID),
    errors.PermissionDenied: (403, _INVALID),
    errors.ModelNotFound: (404, _INVALID),
    errors.JobNotFound: (404, _INVALID),
    errors.BatchNotFound: (404, _INVALID),
    errors.WebhookNotFound: (404, _INVALID),
    errors.PreviousResponseNotFound: (404, _INVALID),
    errors.ItemNotFound: (404, _INVALID),
    errors.RequestTimeout: (408, _INVALID),
    errors.JobCancelled: (409, _INVALID),
    errors.FileMissing: (404, _INVALID),
    errors.StreamExpired: (410, _INVALID),
    errors.RequestTooLarge: (413, _INVALID),
    errors.UnsupportedMediaType: (415, _INVALID),
    errors.RangeNotSatisfiable: (416, _INVALID),
    errors.HeadersTooLarge: (431, _INVALID),
    errors.IdempotencyKeyReused: (422, _INVALID),
    errors.InsufficientQuota: (429, "insufficient_quota"),
    errors.RateLimitExceeded: (429, "requests"),
    errors.TokenLimitExceeded: (429, "tokens"),
    errors.TokenLimitTooLow: (429, "tokens"),
    errors.EngineFailed: (500, _SERVER),
    errors.WorkerLost: (503, _SERVER),
    errors.DeadlineExceeded: (504, _SERVER),
    errors.ServiceUnavailable: (503, _SERVER),
    errors.MethodNotImplemented: (501, _SERVER),
    errors.HttpVersionUnsupported: (505, _SERVER),
    errors.InternalError: (500, _SERVER),
}

# What a load balancer reads as "send nothing here".
UNAVAILABLE = STATUS[errors.ServiceUnavailable][0]

# Statuses that Starlette itself answers, with the code to show.
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}
_HTTP_MESSAGES = {404: "Unknown request URL.", 405: "This URL doesn't take that method."}

CLIENT_LEFT = 499  # nginx's word for a client that went before its answer; nobody reads it

RETRY_AFTER_S = 1


class ClientLeft(Exception):
    """The client that waited has gone: there is nobody to answer."""


# Errors that no retry helps, with statuses that stock clients retry otherwise.
_FINAL = (
    errors.InsufficientQuota,
    errors.TokenLimitTooLow,
    errors.JobCancelled,
    errors.ModelUnavailable,
)

# Objects whose keys the client makes up: they are content, not names of parameters.
_OPEN_OBJECTS = frozenset({"metadata", "logit_bias"})


def status_of(error: ServiceError) -> tuple[int, str]:
    """(HTTP status, error type) of an error."""
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    return STATUS[InternalError]


def error_response(error: ServiceError) -> Response:
    """The answer to a request that failed with this error."""
    status, _ = status_of(error)
    return _response(status, error_object(error), _headers(error, status) | error.headers)


def invalid_request(error: ValidationError) -> InvalidRequest:
    """The first mistake pydantic found, without the input."""
    return _describe(error.errors(include_url=False, include_input=False))


def install(app: FastAPI) -> None:
    """Give an app these answers for everything that can go wrong in a route."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientLeft, _on_client_left)
    app.add_exception_handler(OperationalError, _on_database_away)
    app.add_exception_handler(InterfaceError, _on_database_away)


def unexpected_response() -> Response:
    """The answer when we have a bug: no detail."""
    return error_response(InternalError())


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(_describe(error.errors()))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    type_ = _INVALID if status < 500 else _SERVER
    message = _HTTP_MESSAGES.get(status, str(error.detail))
    error_fields = _object(type_, _HTTP_CODES.get(status), message, None)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = _allowed_methods(request) or headers["Allow"]
    if request.method == "OPTIONS" and (status == 405 or request.url.path == "*"):
        return Response(status_code=204, headers=headers)
    return _response(status, error_fields, headers)


def _allowed_methods(request: Request) -> str:
    """All methods of a URL: Starlette names those of the first route that it finds there."""
    routes = [
        route
        for route in getattr(request.app.state, "routes", ())
        if route.matches(request.scope)[0] is not Match.NONE
    ]
    # A fixed URL may look like an id of the route beside it.
    fixed = [route for route in routes if route.path == request.url.path]
    methods = {method for route in fixed or routes for method in route.methods}
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods | {"OPTIONS"})) if methods else ""


async def _on_client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _on_database_away(request: Request, error: Exception) -> Response:
    """Postgres is away or too slow. The statement may or may not have been committed."""
    log.warning("database_unavailable", error=type(error).__name__)
    return error_response(errors.ServiceUnavailable())


def _describe(mistakes: Sequence[Any]) -> InvalidRequest:
    mistake = mistakes[0]
    if mistake["type"] in (MISTAKE, UNSUPPORTED):
        return _of_several_fields(mistake)
    param = _param(mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        return UnsupportedParameter(f"Unknown parameter: '{param}'.", param=param)
    if mistake["type"] == "missing":
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param)
    # pydantic names the class of ours that an object would become.
    is_no_object = mistake["type"] == "model_type"
    message = "Input should be an object." if is_no_object else _text(mistake["msg"])
    return InvalidRequest(f"'{param}': {message}" if param else message, param=param)


def _of_several_fields(mistake: Mapping[str, Any]) -> InvalidRequest:
    """A rule of ours says itself which of them is to be mended."""
    named = [part for part in mistake["ctx"]["param"].split(".") if part]
    kind = UnsupportedParameter if mistake["type"] == UNSUPPORTED else InvalidRequest
    return kind(_text(mistake["msg"]), param=_param([*mistake["loc"], *named]))


def _param(location: Iterable[int | str]) -> str | None:
    """`messages.0.content`; without FastAPI's first part, which says where a parameter stood."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] in ("query", "path", "header", "body"):
        parts = parts[1:]
    if parts and parts[0] in _OPEN_OBJECTS:
        parts = parts[:1]
    return ".".join(parts)[:200] or None


def _text(message: str) -> str:
    """pydantic's words as a sentence of ours."""
    message = message.removeprefix("Value error, ").replace(" after validation", "")
    return message if message.endswith(".") else f"{message}."


def _headers(error: ServiceError, status: int) -> dict[str, str]:
    if isinstance(error, errors.InvalidApiKey):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, _FINAL):
        return {"x-should-retry": "false"}
    if error.retryable and status in (429, 503):
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {}


def error_object(error: ServiceError) -> dict[str, str | None]:
    """OpenAI's error object, as bodies and streams hold it."""
    return _object(status_of(error)[1], error.code, error.message, error.param)


def _object(type_: str, code: str | None, message: str, param: str | None) -> dict[str, str | None]:
    return {"message": message, "type": type_, "param": param, "code": code}


def _response(status: int, error: Mapping[str, str | None], headers: Mapping[str, str]) -> Response:
    body = orjson.dumps({"error": error})
    return Response(body, status, headers=dict(headers), media_type="application/json")
