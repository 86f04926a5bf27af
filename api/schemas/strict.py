"""What request bodies have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticUndefined


class Strict(BaseModel):
    """No unknown fields, no conversions, no NaN; mistakes are reported without the input."""

    # A float field takes 1 as well as 1.0 even so.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


# For subclasses of the bodies that other people's clients send: what we don't know is ignored, as
# OpenAI does, and named in a header of the answer.
IGNORE_UNKNOWN = ConfigDict(extra="ignore")


def unknown_fields(model: type[BaseModel], body: Mapping[str, Any]) -> list[str]:
    """Top-level names of a body that its schema doesn't know, sorted."""
    return sorted(body.keys() - _known(model).keys())


def known_fields(model: type[BaseModel], body: Mapping[str, Any]) -> dict[str, Any]:
    """A valid body as it was sent, without the fields that its schema doesn't know, at any depth.

    What a client adds of its own is read by nobody, so it is not stored either.
    """
    return _keep((model,), body)


def _keep(models: tuple[type[BaseModel], ...], body: Mapping[str, Any]) -> dict[str, Any]:
    kept = {}
    for name, value in body.items():
        inner = [_known(model)[name] for model in models if name in _known(model)]
        if inner:
            kept[name] = _keep_inside(tuple(dict.fromkeys(m for ms in inner for m in ms)), value)
    return kept


def _keep_inside(models: tuple[type[BaseModel], ...], value: Any) -> Any:
    """What is of no schema (a JSON schema, metadata) is free in its form and kept whole."""
    if isinstance(value, list) and models:
        return [_keep_inside(models, item) for item in value]
    return _keep(models, value) if isinstance(value, dict) and models else value


@cache
def _known(model: type[BaseModel]) -> dict[str, tuple[type[BaseModel], ...]]:
    """The names of a schema's fields, each with the schemas that its value may be of."""
    return {
        field.alias or name: tuple(_models_in(field.annotation, field.metadata))
        for name, field in model.model_fields.items()
    }


def _models_in(kind: Any, metadata: Iterable[Any] = ()) -> Iterator[type[BaseModel]]:
    """Those that a client writes: a validator may make something else of it."""
    written = [item.json_schema_input_type for item in metadata if type(item) is BeforeValidator]
    if written and written[0] is not PydanticUndefined:
        yield from _models_in(written[0])
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif get_origin(kind) is Annotated:
        yield from _models_in(get_args(kind)[0], get_args(kind)[1:])
    else:
        for inner in get_args(kind):
            yield from _models_in(inner)
