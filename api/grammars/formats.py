"""From the fields of a request to one grammar, in the form that the engine's grammar.py documents.

Everything here is cheap and bounded. Whether the grammar can be compiled says `checker.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
from llguidance import LLMatcher

from api.grammars.finite import Looks, can_end
from api.grammars.finite_lark import lark_can_end
from api.grammars.limits import MAX_GRAMMAR_BYTES
from api.grammars.schema_limits import check_schema
from api.schemas.structured_outputs import ResponseFormat, StructuredOutputFields, StructuredOutputs
from tasks.errors import InvalidGrammar, InvalidRequest

_ANY_OBJECT = {"type": "object"}

# llguidance reads these from the schema itself, so a client's own are replaced. Whitespace without
# end is what weak models fall into inside JSON; 40 characters indent ten levels by four.
_JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A serialised llguidance grammar, and where in the request it came from."""

    text: str
    param: str
    noun: str  # what the client calls it: schema, regex, choice list, grammar
    schema: Mapping[str, Any] | None = None  # of JSON
    is_of_all: bool = False  # that the model writes, and not of what it answers beside calls


def requested_form(request: StructuredOutputFields) -> Grammar | None:
    """The grammar of the answer that a request asks for; None for free text.

    Raises InvalidGrammar for what is too large or refers to other documents.
    """
    grammar = _of_response_format(request.response_format)
    structure = request.structure()
    if structure is None:
        return grammar
    if grammar is not None:
        message = "Give either 'response_format' or 'structured_outputs'."
        raise InvalidRequest(message, param="structured_outputs")
    return replace(_of_structured_outputs(*structure), is_of_all=True)


def schema_grammar(schema: Mapping[str, Any], *, param: str) -> Grammar:
    """JSON that a schema describes. Raises InvalidGrammar."""
    check_schema(schema, param=param)
    if not can_end(schema, Looks()):
        raise InvalidGrammar("No finite text satisfies the schema.", param=param)
    document = {"grammars": [{"json_schema": json_schema_document(schema)}]}
    return bounded_grammar(Grammar(orjson.dumps(document).decode(), param, "schema", schema))


def json_schema_document(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with our options in place of any of the client's own."""
    return {**schema, "x-guidance": _JSON_OPTIONS}


def _of_response_format(asked: ResponseFormat | None) -> Grammar | None:
    if asked is None or asked.type == "text":
        return None
    if asked.json_schema is None:
        return schema_grammar(_ANY_OBJECT, param="response_format")
    return schema_grammar(asked.json_schema.schema_, param="response_format.json_schema.schema")


def _of_structured_outputs(asked: StructuredOutputs, prefix: str) -> Grammar:
    """`prefix` is what the names of parameters begin with."""
    if asked.json_ is not None:
        return schema_grammar(asked.json_, param=f"{prefix}json")
    if asked.regex is not None:
        text = LLMatcher.grammar_from_regex(asked.regex)
        return bounded_grammar(Grammar(text, f"{prefix}regex", "regex"))
    if asked.choice is not None:
        text = _of_lark(_choices(asked.choice))
        return bounded_grammar(Grammar(text, f"{prefix}choice", "choice list"))
    assert asked.grammar is not None
    if not lark_can_end(asked.grammar):
        raise InvalidGrammar("No finite text matches the grammar.", param=f"{prefix}grammar")
    return bounded_grammar(Grammar(_of_lark(asked.grammar), f"{prefix}grammar", "grammar"))


def _choices(choices: Sequence[str]) -> str:
    # ASCII: llguidance's lexer refuses some characters, such as DEL, inside a literal.
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=True) for choice in choices)


def _of_lark(lark: str) -> str:
    return orjson.dumps({"grammars": [{"lark_grammar": lark}]}).decode()


def bounded_grammar(grammar: Grammar) -> Grammar:
    """The grammar, if the engine takes one as large. Raises InvalidGrammar."""
    if len(grammar.text.encode()) > MAX_GRAMMAR_BYTES:
        message = f"The {grammar.noun} is larger than {MAX_GRAMMAR_BYTES} bytes."
        raise InvalidGrammar(message, param=grammar.param)
    return grammar
