"""What a request says its body is."""

from __future__ import annotations

from starlette.requests import Request

from tasks.errors import UnsupportedMediaType

JSON = "application/json"
FORM = "multipart/form-data"


def check_is_json(request: Request) -> None:
    """Raises UnsupportedMediaType. A body that doesn't say what it is may be JSON: some clients
    never say it.
    """
    said = request.headers.getlist("content-type")
    if not all(_is_json(media_type_of(value)) for value in said):
        raise _unsupported(JSON, said[0])


def check_is_form(request: Request) -> None:
    """Raises UnsupportedMediaType."""
    said = request.headers.get("content-type", "")
    if media_type_of(said) != FORM:
        raise _unsupported(FORM, said)


def media_type_of(value: str) -> str:
    """Without its parameters."""
    return value.partition(";")[0].strip().lower()


def _is_json(media_type: str) -> bool:
    return media_type == JSON or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def _unsupported(expected: str, said: str) -> UnsupportedMediaType:
    named = f", not '{media_type_of(said)[:100]}'" if said else ""
    error = UnsupportedMediaType(
        f"The body must be {expected}{named}: send the header 'Content-Type: {expected}'."
    )
    error.headers = {"Accept": expected}
    return error
