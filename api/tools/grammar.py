"""Grammars of answers that may or must call tools, in llguidance's dialect of Lark.

answer, calls or both     TEXT? call*        (tool_choice auto)
calls                     call+              (required, or a named function)
call                      begin {"name": "f", "arguments": ...f's schema...} end
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from api.grammars.formats import Grammar, bounded_grammar, json_schema_document
from api.grammars.schema_limits import check_schema
from api.tools.formats import ToolFormat, is_special
from api.tools.request import Tool, ToolMode, ToolUse

# Between the marks and around the object models write line breaks, or nothing.
_SPACE = r"SPACE: /[ \n]{0,2}/"

# Keywords whose values are no schemas, or parts that stand for nothing alone.
_OPAQUE = frozenset({"const", "enum", "default", "examples", "required", "allOf"})
_NAMED_SCHEMAS = frozenset({"properties", "$defs", "definitions"})
_COMBINING = frozenset(
    {"additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref"}
)


def tool_grammar(
    use: ToolUse,
    format_: ToolFormat,
    *,
    special_tokens: Collection[str],
    answer_schema: Mapping[str, Any] | None = None,
) -> Grammar:
    """What the model may write. `answer_schema` is the form of an answer that calls nothing.

    Raises InvalidGrammar for parameters that are too large or refer to other documents.
    """
    for tool in use.callable:
        check_schema(tool.parameters, param=use.param)
    rules = [
        f"start: {_start(use, format_, answer_schema)}",
        f"calls: {_calls(use, format_)}",
        "call: " + " | ".join(f"call_{number}" for number in range(len(use.callable))),
        *(_call(n, tool, format_, special_tokens) for n, tool in enumerate(use.callable)),
        _SPACE,
    ]
    if use.mode is ToolMode.AUTO:
        rules.append(_answer(format_, special_tokens, answer_schema))
    text = orjson.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}]}).decode()
    return bounded_grammar(Grammar(text, use.param, "set of tools"))


def _start(use: ToolUse, format_: ToolFormat, answer_schema: Mapping[str, Any] | None) -> str:
    if use.mode is ToolMode.REQUIRED:
        return "calls"
    # Text before a call would break the form of an answer, and a format without marks.
    if answer_schema is not None or not format_.begin:
        return "answer | calls"
    return "answer | answer? calls"


def _calls(use: ToolUse, format_: ToolFormat) -> str:
    return "call (SPACE call)*" if use.is_parallel and format_.begin else "call"


def _call(number: int, tool: Tool, format_: ToolFormat, special_tokens: Collection[str]) -> str:
    arguments = _moved(_closed(tool.parameters), f"/properties/{format_.arguments_key}")
    schema = {
        "type": "object",
        "properties": {"name": {"const": tool.name}, format_.arguments_key: arguments},
        "required": ["name", format_.arguments_key],
        "additionalProperties": False,
    }
    inner = f"%json {json.dumps(json_schema_document(schema))}"
    if not format_.begin:
        return f"call_{number}: {inner}"
    begin, end = (_mark(mark, special_tokens) for mark in (format_.begin, format_.end))
    return f"call_{number}: {begin} SPACE {inner} SPACE {end}"


def _closed(node: Any) -> Any:
    """A schema whose plain objects hold what they name and nothing else.

    JSON Schema allows any further property where a schema is silent, and small models take it at
    its word. Objects that other keywords add to stay open: closing their parts would empty them.
    """
    if isinstance(node, list):
        return [_closed(member) for member in node]
    if not isinstance(node, Mapping):
        return node
    closed = {
        name: member if name in _OPAQUE else _closed_members(name, member)
        for name, member in node.items()
    }
    return {**closed, "additionalProperties": False} if _is_plain_object(node) else closed


def _closed_members(keyword: str, value: Any) -> Any:
    if keyword in _NAMED_SCHEMAS and isinstance(value, Mapping):
        return {name: _closed(member) for name, member in value.items()}
    return _closed(value)


def _is_plain_object(node: Mapping[str, Any]) -> bool:
    properties = node.get("properties")
    return (
        node.get("type") == "object"
        and isinstance(properties, Mapping)
        and not _COMBINING & node.keys()
        and set(node.get("required") or ()) <= properties.keys()
    )


def _moved(node: Any, path: str) -> Any:
    """A schema that stands at `path` of another document: its references begin there."""
    if isinstance(node, Mapping):
        return {
            name: f"#{path}{member[1:]}"
            if name == "$ref" and isinstance(member, str) and member.startswith("#")
            else _moved(member, path)
            for name, member in node.items()
        }
    return [_moved(member, path) for member in node] if isinstance(node, list) else node


def _mark(mark: str, special_tokens: Collection[str]) -> str:
    """A special token is written as it is; other marks are strings."""
    return mark if is_special(mark, special_tokens) else json.dumps(mark)


def _answer(
    format_: ToolFormat, special_tokens: Collection[str], answer_schema: Mapping[str, Any] | None
) -> str:
    if answer_schema is not None:
        return f"answer: %json {json.dumps(json_schema_document(answer_schema))}"
    if not format_.begin:
        # The parser takes what begins with `{` for a call.
        return r"answer: /[^{\s](?s:.*)/"
    if is_special(format_.begin, special_tokens):
        return "answer: /(?s:.+)/"
    return f"answer: TEXT\nTEXT: /(?s:.+)/ & ~/(?s:.*{re.escape(format_.begin)}.*)/"
