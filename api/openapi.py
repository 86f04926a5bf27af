"""What the OpenAPI document says beyond FastAPI's own words. Routes parse their bodies themselves,
so they name here what they take; what all routes share (keys, errors) is added to each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from api.errors import STATUS
from api.schemas.objects import ErrorBody

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

_SCHEMAS = "#/components/schemas/{model}"
_BEARER = {"type": "http", "scheme": "bearer", "description": "An API key."}
_BYTES = {"type": "string", "format": "binary"}
# One event. Its data is JSON, or [DONE] at the end of a stream of completions.
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string"},
        "retry": {"type": "integer"},
    },
    "required": ["data"],
}


def takes(model: type[BaseModel], media_type: str = JSON) -> dict[str, Any]:
    """The `openapi_extra` of a route that parses this body. `install` must know the model too."""
    content = {media_type: {"schema": {"$ref": _ref(model)}}}
    return {"requestBody": {"required": True, "content": content}}


def gives(
    model: type[BaseModel] | None = None, *others: str, status: int = 200
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: an object, or bytes of other media types, or either."""
    answer: dict[str, Any] = {"description": "Success"}
    if model is not None:
        answer["model"] = model
    if others:
        answer["content"] = {
            media_type: {"schema": _EVENT if media_type == EVENT_STREAM else _BYTES}
            for media_type in others
        }
    return {status: answer}


def install(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> None:
    """Give an app this document, made when it is first asked for."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(make(), bodies)
        assert app.openapi_schema is not None  # kept by FastAPI, and completed in place
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], bodies: Sequence[type[BaseModel]]) -> None:
    models = [(model, "validation") for model in (*bodies, ErrorBody)]
    _, definitions = models_json_schema(models, ref_template=_SCHEMAS)  # type: ignore[arg-type]
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas.update(definitions["$defs"])
    components["securitySchemes"] = {"key": _BEARER}
    for operation in _operations(document):
        operation["security"] = [{"key": []}]
        operation["responses"].update(_errors())


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that need a key."""
    for path, methods in document["paths"].items():
        if path.startswith("/v1/"):
            yield from methods.values()


def _errors() -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": _ref(ErrorBody)}}}
    statuses = sorted({status for status, _ in STATUS.values()})
    return {str(status): {"description": "Error", "content": content} for status in statuses}


def _ref(model: type[BaseModel]) -> str:
    return _SCHEMAS.format(model=model.__name__)
