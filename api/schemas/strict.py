"""What request bodies have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    model_validator,
)
from pydantic_core import (
    CoreSchema,
    PydanticCustomError,
    PydanticKnownError,
    PydanticUndefined,
    core_schema,
)

# A body with more fields than any schema has is looked through before it is validated.
MANY_FIELDS = 64

# Types of mistakes that name their field themselves, see `mistake`.
MISTAKE, UNSUPPORTED = "mistake", "unsupported"


def mistake(message: str, param: str = "") -> PydanticCustomError:
    """For a rule between fields: `param` is the one to mend, seen from where the rule stands."""
    return PydanticCustomError(MISTAKE, "{text}", {"text": message, "param": param})


def unsupported(message: str, param: str = "") -> PydanticCustomError:
    """The same for what is well-formed, and nothing that there is here."""
    return PydanticCustomError(UNSUPPORTED, "{text}", {"text": message, "param": param})


def _stop_at_first_mistake(schema: Any) -> None:
    """In all lists of a schema, in place."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _stop_at_first_mistake(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _stop_at_first_mistake(part)


class Strict(BaseModel):
    """No unknown fields, no conversions, no NaN; mistakes are reported without the input.

    Only the first mistake is of use. To describe tens of thousands takes pydantic 100 ms in a
    single call, so lists end at the first one, of unknown fields one is left, and a dict with too
    many entries is not looked into (`at_most`).
    """

    # A float field takes 1 as well as 1.0 even so.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, value: Any) -> Any:
        if not isinstance(value, dict) or len(value) <= MANY_FIELDS:
            return value
        names = _known(cls)
        known = {name: value[name] for name in names if name in value}
        unknown = next((name for name in value if name not in names), None)
        return known if unknown is None else known | {unknown: value[unknown]}

    @classmethod
    def skips(cls, item: Any) -> bool:
        """Whether an item of a list is none of these, and left out (`OrSkipped`)."""
        return False

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _stop_at_first_mistake(schema)
        return schema


class Skipped(Strict):
    """In the place of an item that no model here can use."""

    model_config = ConfigDict(extra="ignore")

    type: str


class OrSkipped:
    """Annotates `X | Skipped`: what X skips is left out, everything else is validated as X, so that
    no error names both.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        [model, _] = get_args(source)

        def validate(value: Any, inner: Any) -> Any:
            return Skipped(type=value["type"]) if model.skips(value) else inner(value)

        return core_schema.no_info_wrap_validator_function(
            validate, handler.generate_schema(model), json_schema_input_schema=handler(source)
        )


def type_of(item: Any) -> str | None:
    """What an item of a body says it is."""
    kind = item.get("type") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else None


def at_most(num: int) -> BeforeValidator:
    """Of a dict with more entries none is validated."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > num:
            lengths = {"max_length": num, "actual_length": len(value)}
            raise PydanticKnownError("too_long", {"field_type": "Dictionary", **lengths})
        return value

    return BeforeValidator(check)


# For subclasses of the bodies that other people's clients send: what we don't know is ignored, as
# OpenAI does, and named in a header of the answer.
IGNORE_UNKNOWN = ConfigDict(extra="ignore")


_Models = tuple[type["Strict"], ...]


@dataclass(frozen=True, slots=True)
class NoEffect:
    """Marks a field that is taken, and changes no answer: who gives it is told so."""


def ignored_fields(model: type[Strict], body: Mapping[str, Any]) -> list[str]:
    """Paths of what has no effect in a body, at any depth, sorted: fields that its schema doesn't
    know, and those marked so. Nulls are not given; of equal places in a list the first is named.
    """
    found: dict[tuple[str, ...], str] = {}
    _look_through((model,), body, (), found)
    return sorted(found.values())


def _look_through(
    models: _Models,
    value: Any,
    path: tuple[str, ...],
    found: dict[tuple[str, ...], str],
) -> None:
    if isinstance(value, list):
        for number, item in enumerate(value):
            is_skipped = any(model.skips(item) for model in models)
            if isinstance(item, dict | list) and not is_skipped:
                _look_through(models, item, (*path, str(number)), found)
    elif isinstance(value, dict):
        fields, marked = _fields(models), _without_effect(models)
        for name, member in value.items():
            here = (*path, name)
            if member is not None and (name not in fields or name in marked):
                found.setdefault(_kind(here), ".".join(here))
            elif fields.get(name):
                _look_through(fields[name], member, here, found)


def _kind(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(step for step in path if not step.isdecimal())


@cache
def _without_effect(models: _Models) -> frozenset[str]:
    return frozenset(
        field.alias or name
        for model in models
        for name, field in model.model_fields.items()
        if any(isinstance(item, NoEffect) for item in field.metadata)
    )


def known_fields(model: type[Strict], body: Mapping[str, Any]) -> dict[str, Any]:
    """A valid body as it was sent, without the fields that its schema doesn't know, at any depth.

    What a client adds of its own is read by nobody, so it is not stored either.
    """
    return _keep((model,), body)


def _keep(models: _Models, body: Mapping[str, Any]) -> dict[str, Any]:
    fields = _fields(models)
    return {
        name: _keep_inside(fields[name], value) for name, value in body.items() if name in fields
    }


@cache
def _fields(models: _Models) -> dict[str, _Models]:
    """The names of all fields of some schemas, each with the schemas that its value may be of."""
    fields: dict[str, _Models] = {}
    for model in models:
        for name, inner in _known(model).items():
            fields[name] = tuple(dict.fromkeys(fields.get(name, ()) + inner))
    return fields


def _keep_inside(models: _Models, value: Any) -> Any:
    """What is of no schema (a JSON schema, metadata) is free in its form and kept whole."""
    if not models:
        return value
    if isinstance(value, list):
        kept = (item for item in value if not any(model.skips(item) for model in models))
        return [_keep_inside(models, item) for item in kept]
    return _keep(models, value) if isinstance(value, dict) else value


@cache
def _known(model: type[Strict]) -> dict[str, _Models]:
    """The names of a schema's fields, each with the schemas that its value may be of."""
    return {
        field.alias or name: tuple(_models_in(field.annotation, field.metadata))
        for name, field in model.model_fields.items()
    }


def _models_in(kind: Any, metadata: Iterable[Any] = ()) -> Iterator[type[Strict]]:
    """Those that a client writes: a validator may make something else of it."""
    written = [item.json_schema_input_type for item in metadata if type(item) is BeforeValidator]
    if written and written[0] is not PydanticUndefined:
        yield from _models_in(written[0])
    elif isinstance(kind, type) and issubclass(kind, Strict):
        yield kind
    elif get_origin(kind) is Annotated:
        yield from _models_in(get_args(kind)[0], get_args(kind)[1:])
    else:
        for inner in get_args(kind):
            yield from _models_in(inner)
