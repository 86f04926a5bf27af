"""The SDK's own types made strict: answers hold what they name, in their types, and `millrace`."""

from __future__ import annotations

from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

EXTENSION = "millrace"


def assert_fits(model: type[BaseModel], document: Any) -> None:
    """No field is missing, of another type, or unknown to the SDK, at any depth."""
    model.model_validate(document, strict=True)
    _assert_known(model, {key: document[key] for key in document if key != EXTENSION}, "$")


def _assert_known(annotation: Any, value: Any, path: str) -> None:
    if isinstance(value, list):
        members = [inner for kind in _members(annotation) for inner in get_args(kind)]
        for index, item in enumerate(value):
            _assert_known(Union[tuple(members)], item, f"{path}[{index}]")  # noqa: UP007
    elif isinstance(value, dict):
        models = [kind for kind in _members(annotation) if isinstance(kind, type)]
        fields = _fields([kind for kind in models if issubclass(kind, BaseModel)])
        for name, inner in value.items():
            assert not fields or name in fields, f"{path}.{name} is not among the SDK's fields"
            if fields:
                _assert_known(fields[name], inner, f"{path}.{name}")


def _fields(models: list[type[BaseModel]]) -> dict[str, Any]:
    return {
        field.alias or name: field.annotation
        for model in models
        for name, field in model.model_fields.items()
    }


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the one type."""
    origin = get_origin(annotation)
    if origin is None or origin in (list, dict, Literal):
        return [annotation]
    return [member for part in get_args(annotation) for member in _members(part)]
