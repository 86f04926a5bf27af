"""The fields that ask for output of a given form: OpenAI's `response_format`, and vLLM's
`structured_outputs` for what OpenAI has no words for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BeforeValidator, Field, model_validator

from api.grammars.limits import (
    MAX_CHOICE_CHARS,
    MAX_CHOICES,
    MAX_LARK_CHARS,
    MAX_REGEX_CHARS,
)
from api.schemas.strict import Strict, mistake

_KINDS = ("json", "regex", "choice", "grammar")


# One of two forms becomes the other before validation: an error in a union would name both.
def _text_as_schema(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"The text is not valid JSON: {error.msg}.") from None


SchemaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
SchemaDescription = Annotated[str, Field(max_length=4_096)]


class JsonSchemaFormat(Strict):
    """A schema under a name. `strict` changes nothing: a schema is always enforced."""

    name: SchemaName
    description: SchemaDescription | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    """OpenAI's three formats. One model, because an error in a union would name its members."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            message = "Give 'json_schema' with the type 'json_schema', and with no other."
            raise mistake(message, "json_schema")
        return self


JsonSchema = Annotated[
    dict[str, Any] | None,
    BeforeValidator(_text_as_schema, json_schema_input_type=dict[str, Any] | str | None),
]
Regex = Annotated[str, Field(min_length=1, max_length=MAX_REGEX_CHARS)]
Choice = Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]
Choices = Annotated[list[Choice], Field(min_length=1, max_length=MAX_CHOICES)]
Lark = Annotated[str, Field(min_length=1, max_length=MAX_LARK_CHARS)]


class StructuredOutputs(Strict):
    """vLLM's form: one of four ways to say what the output must be."""

    json_: Annotated[JsonSchema, Field(alias="json")] = None
    regex: Regex | None = None
    choice: Choices | None = None
    grammar: Lark | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        given = [value for value in self.__dict__.values() if value is not None]
        if len(given) != 1:
            raise ValueError(f"Give exactly one of {', '.join(_KINDS)}.")
        return self


class StructuredOutputFields(Strict):
    """What the output must look like; text of any form without them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # The same by the names of older releases of vLLM.
    guided_json: JsonSchema = None
    guided_regex: Regex | None = None
    guided_choice: Choices | None = None
    guided_grammar: Lark | None = None

    @model_validator(mode="after")
    def _one_form(self) -> StructuredOutputFields:
        guided = self._guided()
        if len(guided) > 1 or (guided and self.structured_outputs is not None):
            names = ", ".join(f"guided_{kind}" for kind in _KINDS)
            raise ValueError(f"Give one of structured_outputs, {names}.")
        return self

    def structure(self) -> tuple[StructuredOutputs, str] | None:
        """What is asked for in vLLM's form, and the beginning of its parameter's name."""
        if self.structured_outputs is not None:
            return self.structured_outputs, "structured_outputs."
        guided = self._guided()
        return (StructuredOutputs.model_validate(guided), "guided_") if guided else None

    def _guided(self) -> dict[str, Any]:
        values = {kind: getattr(self, f"guided_{kind}") for kind in _KINDS}
        return {kind: value for kind, value in values.items() if value is not None}
